// The device and the stream of a call, and errors of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../common/tensor.h"

namespace ghn::cuda {

inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
  }
}

// While it lives, the device of a tensor is the current one.
inline torch::stable::accelerator::DeviceGuard guard_of(const Tensor& tensor) {
  return torch::stable::accelerator::DeviceGuard(tensor.get_device());
}

// torch's current stream on a device.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  detail::check(aoti_torch_get_current_cuda_stream(device, &stream), "current stream");
  return static_cast<cudaStream_t>(stream);
}

inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace ghn::cuda

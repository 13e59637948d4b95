// The expansion of parameters on CUDA as ops: checks, memory, launches.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "../common/expand_params_args.h"
#include "expand_params.h"

namespace ghn::cuda {
namespace {

Type type_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Type::kFloat;
    case at::kDouble: return Type::kDouble;
    case at::kHalf: return Type::kHalf;
    case at::kBFloat16: return Type::kBFloat16;
    default: TORCH_CHECK_TYPE(false, "blocks: got ", type,
                              ", needs float32, float64, float16 or bfloat16");
  }
}

bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// A tensor on a GPU anywhere among the arguments calls these ops.
void check_on_gpu(at::TensorList blocks) {
  TORCH_CHECK_VALUE(blocks[0].is_cuda(), "blocks: got tensors on ", blocks[0].device(),
                    ", needs them on a GPU, as another argument is");
}

std::vector<at::Tensor> contiguous(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.contiguous());
  return result;
}

ExpandArgs make_args(const std::vector<at::Tensor>& blocks, const at::Tensor& table,
                     const std::optional<at::Tensor>& packed, int64_t numel) {
  read_table(table, blocks, numel);
  TORCH_CHECK_VALUE(int64_t(blocks.size()) <= kMostBlocks, "blocks: got ", blocks.size(),
                    " tensors, CUDA takes at most ", kMostBlocks);
  TORCH_CHECK_VALUE(packed.has_value(), "packed: got None, needs what expand_params_pack gives");
  check_device(*packed, blocks[0].device(), "packed");
  check_dtype(*packed, at::kByte, "packed");
  const int64_t segments = ExpandPlan::segments_in(packed->numel(), table.size(0));
  TORCH_CHECK_VALUE(packed->is_contiguous() && packed->dim() == 1 && segments >= 0 &&
                        is_aligned(*packed),
                    "packed: got shape ", packed->sizes(),
                    ", which is no plan of the table; needs what expand_params_pack gives");
  ExpandArgs args;
  args.packed = packed->const_data_ptr<uint8_t>();
  args.rows = table.size(0), args.segments = segments;
  args.fingerprint = fingerprint(table, blocks, numel);
  args.type = type_of(blocks[0].scalar_type());
  args.num_blocks = int32_t(blocks.size());
  args.aligned = std::all_of(blocks.begin(), blocks.end(), is_aligned);
  return args;
}

}  // namespace

at::Tensor expand_params_cuda(at::TensorList blocks, const at::Tensor& table,
                              const std::optional<at::Tensor>& packed, int64_t numel) {
  TORCH_CHECK_VALUE(numel >= 0, "numel: got ", numel, ", needs at least 0");
  check_blocks(blocks);
  check_on_gpu(blocks);
  const c10::cuda::CUDAGuard guard(blocks[0].device());
  const std::vector<at::Tensor> from = contiguous(blocks);
  ExpandArgs args = make_args(from, table, packed, numel);
  at::Tensor out = at::empty({numel}, blocks[0].options());
  if (numel == 0) return out;
  args.aligned = args.aligned && is_aligned(out);
  Blocks pointers{};
  for (size_t i = 0; i < from.size(); ++i) pointers.at[i] = from[i].const_data_ptr();
  C10_CUDA_CHECK(launch_expand(args, pointers, out.data_ptr(), numel, out.get_device(),
                               c10::cuda::getCurrentCUDAStream()));
  return out;
}

std::vector<at::Tensor> expand_params_backward_cuda(const at::Tensor& grad, at::TensorList blocks,
                                                    const at::Tensor& table,
                                                    const std::optional<at::Tensor>& packed) {
  check_blocks(blocks);
  check_on_gpu(blocks);
  TORCH_CHECK_VALUE(grad.dim() == 1, "grad: got shape ", grad.sizes(), ", needs one dimension");
  check_dtype(grad, blocks[0].scalar_type(), "grad");
  check_device(grad, blocks[0].device(), "grad");
  const c10::cuda::CUDAGuard guard(blocks[0].device());
  const std::vector<at::Tensor> from = contiguous(blocks);
  const at::Tensor values = grad.contiguous();
  const ExpandArgs args = make_args(from, table, packed, grad.numel());
  std::vector<at::Tensor> grads;
  BlocksAndGradients pointers{};
  for (size_t i = 0; i < from.size(); ++i) {
    grads.push_back(at::empty_like(from[i]));
    pointers.at[i] = from[i].const_data_ptr(), pointers.grad[i] = grads[i].data_ptr();
    pointers.size[i] = from[i].numel();
  }
  if (args.segments == 0) return grads;
  C10_CUDA_CHECK(launch_expand_backward(args, pointers, values.const_data_ptr(),
                                        values.get_device(), c10::cuda::getCurrentCUDAStream()));
  return grads;
}

TORCH_LIBRARY_IMPL(ghn_fast, CUDA, m) {
  m.impl("expand_params", &expand_params_cuda);
  m.impl("expand_params_backward", &expand_params_backward_cuda);
}

}  // namespace ghn::cuda

// The expansion of parameters on CUDA as ops: checks, memory, launches.

#include <algorithm>

#include "../common/checks.h"
#include "../common/expand_params_args.h"
#include "../common/torch_call.h"
#include "device.h"
#include "expand_params.h"

namespace ghn::cuda {
namespace {

Type type_of(ScalarType type) {
  switch (type) {
    case kFloat:
      return Type::kFloat;
    case kDouble:
      return Type::kDouble;
    case kHalf:
      return Type::kHalf;
    case kBFloat16:
      return Type::kBFloat16;
    default:
      GHN_CHECK(false, "blocks: got ", type, ", needs float32, float64, float16 or bfloat16");
  }
}

bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// A tensor on a GPU anywhere among the arguments calls these ops.
void check_on_gpu(TensorList blocks) {
  GHN_CHECK(blocks[0].is_cuda(), "blocks: got tensors on ", blocks[0].device(),
            ", needs them on a GPU, as another argument is");
}

std::vector<Tensor> contiguous(TensorList tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.contiguous());
  return result;
}

ExpandArgs make_args(const std::vector<Tensor>& blocks, const Tensor& table,
                     const std::optional<Tensor>& packed, int64_t numel) {
  read_table(table, blocks, numel);
  GHN_CHECK(int64_t(blocks.size()) <= kMostBlocks, "blocks: got ", blocks.size(),
            " tensors, CUDA takes at most ", kMostBlocks);
  GHN_CHECK(packed.has_value(), "packed: got None, needs what expand_params_pack gives");
  check_device(*packed, blocks[0].device(), "packed");
  check_dtype(*packed, kByte, "packed");
  const int64_t segments = ExpandPlan::segments_in(packed->numel(), table.size(0));
  GHN_CHECK(packed->is_contiguous() && packed->dim() == 1 && segments >= 0 && is_aligned(*packed),
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

Tensor expand_params_cuda(TensorList blocks, const Tensor& table,
                          const std::optional<Tensor>& packed, int64_t numel) {
  GHN_CHECK(numel >= 0, "numel: got ", numel, ", needs at least 0");
  check_blocks(blocks);
  check_on_gpu(blocks);
  const auto guard = guard_of(blocks[0]);
  const std::vector<Tensor> from = contiguous(blocks);
  ExpandArgs args = make_args(from, table, packed, numel);
  Tensor out = empty({numel}, blocks[0].options());
  if (numel == 0) return out;
  args.aligned = args.aligned && is_aligned(out);
  Blocks pointers{};
  for (size_t i = 0; i < from.size(); ++i) pointers.at[i] = from[i].const_data_ptr();
  check_cuda(launch_expand(args, pointers, out.data_ptr(), numel, out.get_device(),
                           current_stream(out.get_device())));
  return out;
}

std::vector<Tensor> expand_params_backward_cuda(const Tensor& grad, TensorList blocks,
                                                const Tensor& table,
                                                const std::optional<Tensor>& packed) {
  check_blocks(blocks);
  check_on_gpu(blocks);
  GHN_CHECK(grad.dim() == 1, "grad: got shape ", grad.sizes(), ", needs one dimension");
  check_dtype(grad, blocks[0].scalar_type(), "grad");
  check_device(grad, blocks[0].device(), "grad");
  const auto guard = guard_of(blocks[0]);
  const std::vector<Tensor> from = contiguous(blocks);
  const Tensor values = grad.contiguous();
  const ExpandArgs args = make_args(from, table, packed, grad.numel());
  std::vector<Tensor> grads;
  BlocksAndGradients pointers{};
  for (size_t i = 0; i < from.size(); ++i) {
    grads.push_back(empty_like(from[i]));
    pointers.at[i] = from[i].const_data_ptr(), pointers.grad[i] = grads[i].data_ptr();
    pointers.size[i] = from[i].numel();
  }
  if (args.segments == 0) return grads;
  check_cuda(launch_expand_backward(args, pointers, values.const_data_ptr(), values.get_device(),
                                    current_stream(values.get_device())));
  return grads;
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CUDA, m) {
  m.impl("expand_params", boxed<&expand_params_cuda>);
  m.impl("expand_params_backward", boxed<&expand_params_backward_cuda>);
}

}  // namespace ghn::cuda

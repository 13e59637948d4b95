// Schemas of the ops that need ATen and autograd: compiled against the torch at hand, and optional.
// Fake kernels and gradients are in ghn_fast/ops/, beside the public functions.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(ghn_fast, m) {
  // x (N, C, H, W), weight (C, 1, height, width), float32 or bfloat16 -> images and their gradients
  // in channels_last, the weight's gradient contiguous.
  m.def(
      "depthwise_conv2d(Tensor x, Tensor weight, int[2] stride, int[2] padding, int[2] dilation)"
      " -> Tensor");
  // height, width: of x; and of the weight.
  m.def(
      "depthwise_conv2d_grad_input(Tensor grad, Tensor weight, SymInt height, SymInt width,"
      " int[2] stride, int[2] padding, int[2] dilation) -> Tensor");
  m.def(
      "depthwise_conv2d_grad_weight(Tensor grad, Tensor x, SymInt height, SymInt width,"
      " int[2] stride, int[2] padding, int[2] dilation) -> Tensor");

  // x (N, C, H, W), float32 or bfloat16; weight, bias (C) in float32 or that -> out in
  // channels_last, mean and invstd (C) in float32. The gradients of weight and bias are float32.
  m.def(
      "batch_norm_act(Tensor x, Tensor? weight, Tensor? bias, float eps, bool relu)"
      " -> (Tensor out, Tensor mean, Tensor invstd)");
  m.def(
      "batch_norm_act_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean,"
      " Tensor invstd, bool relu) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");

  // program: ghn_fast/ops/network_program.py; places: of each of its parameters the offset in the
  // buffers, the number of axes, the shape. flat, gradient (P), float32; narrow: flat in bfloat16,
  // whose tensors of more than one axis are taken instead. Gradients of factor times the
  // cross-entropy go to their places in `gradient`; -> 0, or 1 or 2 where loss or gradient is not
  // finite, and `gradient` zero; the loss; correct images.
  m.def(
      "program_gradient(int[] program, int[] places, Tensor flat, Tensor? narrow, Tensor images,"
      " Tensor targets, float factor, float label_smoothing, Generator? generator,"
      " Tensor(a!) gradient) -> (int, float, int)");
}

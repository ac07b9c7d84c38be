"""What a model costs in a layout: parameters, bytes and floating-point operations, by arithmetic alone.

`layout` cuts layers into stages, `images` counts patches and who attends to whom, `parameters` counts weights, `memory` turns
them into the bytes that Megatron allocates, `activations` estimates what autograd keeps, `flops` counts operations from real
lengths, `peaks` knows devices. Nothing here imports torch, Megatron or Transformers.
`docs/costs.md` has the formulas, and says what is exact and what is an estimate.
"""

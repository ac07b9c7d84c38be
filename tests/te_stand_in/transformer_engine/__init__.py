"""A stand-in for Transformer-Engine on a machine without a GPU, for tests of what is built on it: Megatron-Core's own wrappers
and FP8 contexts run on it as they are.

It has the constructors of the real classes (2.11, argument by argument), their parameters' names, the state that their forward
pass leaves and the shapes that they refuse; the arithmetic is plain torch, and FP8 is a rounding of operands. What is not here
cannot be imported, so that Megatron falls back to torch. It proves that the pieces fit; it says nothing of kernels.
"""

import transformer_engine.common
import transformer_engine.pytorch  # noqa: F401

__version__ = "2.11.0"

"""Quantized models: low-bit weights, and one artifact that serves several precisions.

- `core` the error feedback that GPTQ, MatGPTQ, BPDQ and our own methods share; `grid` uniform grids.
- `rtn`, `gptq`, `matgptq`, `nested`, `bpdq`, `rabit`: one method a file, each a function from a layer's weight and
  the statistics of its inputs to a `slices.Quantized`.
- `slices` what a quantized layer is, and its weight at each width; `pack` bits in words.
- `runner.quantize` a whole model, block by block; `artifact` the file; `serve.load_slice` a model out of it.

docs/quantization.md has the formulas' sources, the file layout and what was measured.
"""

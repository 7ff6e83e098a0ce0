"""Export: model.safetensors -> .tflite and .onnx.

| file         | what it is                                                            |
| ------------ | --------------------------------------------------------------------- |
| to_tflite.py | the .tflite, traced through JAX                                       |
| to_onnx.py   | the .onnx, traced through PyTorch                                     |
| loop.py      | sampler and loop inside the .onnx                                     |
| command.py   | the command that both are: no artifact is written unverified          |
| verify.py    | that an artifact computes as its weights do, and what it costs        |
| layout.py    | how weights lie in a file: bits, rows, offsets                        |
| prune.py     | leaves out units of no effect                                         |
| tolerance.py | every tolerance of the project, with its reason                       |
"""

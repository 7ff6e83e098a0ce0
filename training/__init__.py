"""Training: what makes model.safetensors.

| file            | what it is                                                                |
| --------------- | ------------------------------------------------------------------------- |
| train.py        | trains, resumes by itself                                                 |
| config.py       | the settings of a run: what they mean, and what suits a text's size       |
| run.py          | a run at one moment, a step of it, its checkpoint                         |
| metrics.py      | its log                                                                   |
| interrupt.py    | Ctrl-C                                                                    |
| threads.py      | how many threads compute, and how they wait                               |
| evaluate.py     | nats per byte of a model; accuracy on recall tasks                        |
| tasks.py        | recall tasks as bytes                                                     |
| checkpoint.py   | files of weights, written whole or not at all                             |
| spec.py         | the shape of a model, the presets, the table of all weights               |
| model.py        | the model's function, once, for NumPy, JAX and PyTorch                    |
| mixers/         | what mixes tokens: a file each                                            |
| gpt2.py         | baseline: GPT-2, block and all                                            |
| data.py         | a corpus: found, checked, split, drawn in batches                         |
| documents.py    | many files as one corpus, split by document                               |
| large.py        | a corpus larger than memory, read where it stands                         |
| optimizer.py    | Muon and AdamW as one pure update                                         |
| schedule.py     | the learning rate over a run                                              |
| engine_torch.py | a training step in PyTorch                                                |
| engine_jax.py   | a training step in JAX                                                    |
| mesh.py         | the same on many devices: data, fsdp and sequence                         |
| processes.py    | a run of several processes, one a host                                    |
| checkpoint_folder.py | a checkpoint that many devices write: Orbax                          |
| kernels/        | fused forms of what mixers/primitives.py has plain                        |
"""

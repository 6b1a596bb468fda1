"""The export pipeline: from a local Hugging Face folder to a bundle of inference graphs.

The only side of Covey that imports torch, transformers and peft.
"""

import logging

# torchao comes with executorch; where it finds no CUDA it says so, and torch says something about it.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

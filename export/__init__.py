"""The export pipeline: from a local Hugging Face folder to a bundle of inference graphs.

The only side of Covey that imports torch, transformers and peft.
"""

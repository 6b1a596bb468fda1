"""The device side of Covey, and the contracts that both sides share.

Runs with numpy, onnxruntime, paho-mqtt, msgspec, tokenizers and cryptography. It never imports torch or transformers:
a board that can run inference can train.
"""

__version__ = "0.1.0"

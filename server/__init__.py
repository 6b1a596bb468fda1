"""The coordinating side of Covey: rounds, reconstruction from seeds and scalars, evaluation, ledger.

It holds no private data and never imports the export side or torch.
"""

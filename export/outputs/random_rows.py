"""Random rows with which an output is traced, and compared with PyTorch."""

from __future__ import annotations

import torch


def random_rows(
    rows: int, tokens: int, vocabulary: int, mask_token_id: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask: every second row is one token shorter than the others."""
    input_ids = torch.randint(1, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[1::2, -1] = 0
    if mask_token_id is not None:
        input_ids[input_ids == mask_token_id] = 1 if mask_token_id != 1 else 2
        input_ids[:, 0] = mask_token_id
    return input_ids, mask

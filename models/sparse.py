"""Products with a sparse matrix in CSR, the same call on CPU and CUDA. Nothing here is differentiated by autograd."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def sparse_times_dense(indptr: Tensor, indices: Tensor, values: Tensor, dense_CD: Tensor) -> Tensor:
    """(R, D) = S (R, C) @ dense (C, D), with S given by its arrays (int32 pointers and columns).

    On the CPU each row is added up in the order of its entries, whatever the number of threads; bfloat16 entries are
    added up in float32. CUDA's product promises no order.
    """
    if dense_CD.is_cuda:
        shape = (len(indptr) - 1, len(dense_CD))
        return _csr(indptr, indices, values.to(dense_CD.dtype), shape) @ dense_CD
    # Twice as fast as torch's CSR product, which is MKL's: it gathers whole rows with vector instructions.
    return F.embedding_bag(
        indices, dense_CD, indptr, mode="sum", per_sample_weights=values.to(dense_CD.dtype), include_last_offset=True
    )


def inner_products(indptr: Tensor, indices: Tensor, left_RD: Tensor, right_CD: Tensor) -> Tensor:
    """(E,) left[r] . right[c] for each entry (r, c) of a sparse matrix: never R x C of them, no row is copied."""
    zeros_E = left_RD.new_zeros(len(indices))
    pattern = _csr(indptr, indices, zeros_E, (len(left_RD), len(right_CD)))
    return torch.sparse.sampled_addmm(pattern, left_RD, right_CD.T, beta=0.0).values()


def _csr(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(beta state|is not supported|implicitly disabled).*")
        return torch.sparse_csr_tensor(indptr, indices, values, size=shape, check_invariants=False)

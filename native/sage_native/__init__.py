"""Native kernels (C++20): exact nearest neighbours, re-selection, rank fusion, text splitting."""

from sage_native._native import maximal_marginal_relevance, reciprocal_rank_fusion, split_text, top_k

__all__ = ["maximal_marginal_relevance", "reciprocal_rank_fusion", "split_text", "top_k"]

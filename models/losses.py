"""What a step tries to make small."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.sampling import Batch


def sampled_softmax_loss(user_BD: Tensor, item_ID: Tensor, bias_I: Tensor, batch: Batch) -> Tensor:
    """Sum over the batch's likes of -log softmax(like against the shared negatives), Jean et al. 2015.

    Scores are inner products plus the item's bias. Each negative's score is corrected by how often it is drawn
    (logQ, Bengio and Senecal 2008). The sum over negatives is taken once a user, not once a like.
    """
    negative_score_BM = user_BD @ item_ID[batch.negatives].T
    negative_score_BM = negative_score_BM + (bias_I[batch.negatives] + batch.negative_log_weight)
    against_B = torch.logsumexp(negative_score_BM, dim=1)
    liked_score_E = (user_BD[batch.liked_position] * item_ID[batch.liked_item]).sum(dim=1) + bias_I[batch.liked_item]
    # log(exp(liked) + exp(against)) - liked = softplus(against - liked), without overflow
    return F.softplus(against_B[batch.liked_position] - liked_score_E).sum()

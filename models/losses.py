"""What a step tries to make small. Each takes the propagated rows that its share of the batch needs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.sampling import Share, Triplets
from models.sparse import inner_products, sparse_times_dense

USERS_AT_ONCE = 256  # with thousands of negatives each: about as much as the second-level cache holds
USERS_AT_ONCE_ON_GPU = 2048  # enough to keep it busy between one call and the next


def temperature_of(*, users: int, items: int, likes: int) -> float:
    """How sharp the softmax is where nobody says: sharper where likes are few among all pairs.

    On validation, of six data sets, five with 0.6 % to 4 % of their pairs liked were best at 0.15 or level with their
    best, one with 0.07 % at 0.1 (benchmarks/README.md).
    """
    return 0.15 if likes >= 0.003 * users * items else 0.1


def bpr_loss(row_WD: Tensor, start_WD: Tensor, share: Triplets, *, decay: float) -> Tensor:
    """The share's part of the mean over the step of -log sigmoid(score of the liked item - score of the other).

    Rendle et al. 2009; He et al. 2020, eq. 14: scores are inner products of the propagated rows, and `decay` pulls
    the table's own rows `start_WD` towards zero, as the authors' code does (half the squared norms, a triplet).
    """
    user_BD, liked_BD, other_BD = (row_WD[place] for place in (share.user, share.liked, share.other))
    margin_B = (user_BD * (liked_BD - other_BD)).sum(dim=1)
    squares = sum(start_WD[place].square().sum() for place in (share.user, share.liked, share.other))
    # softplus(-x) = -log sigmoid(x), without overflow
    return (F.softplus(-margin_B).sum() + decay * squares / 2) / share.num_likes_of_step


def sampled_softmax_loss(
    row_WD: Tensor, bias_I: Tensor, share: Share, *, temperature: float, low_precision: bool = False
) -> Tensor:
    """The share's part of the mean over the step's likes of -log softmax(like against the shared negatives).

    Jean et al. 2015, with scores cosine / temperature + the item's bias. Each negative is corrected by how often it
    is drawn (logQ, Bengio and Senecal 2008); a negative that the user likes is left out of the user's sum. The sum
    over negatives is taken once a user, not once a like.

    Gradients are written down, not recorded: the loss of a like is softplus(against - score), hence all of them
    follow from the like's sigmoid(against - score) and the user's softmax over the negatives, which a block of users
    has at hand while its scores are in the cache. `low_precision` forms the scores and their gradients in bfloat16.
    """
    return _SampledSoftmax.apply(row_WD, bias_I, share, temperature, low_precision)


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_WD, bias_I, share, temperature, low_precision):  # type: ignore[no-untyped-def]
        norm_W1 = torch.linalg.vector_norm(row_WD, dim=1, keepdim=True).clamp_min_(1e-12)
        unit_WD = row_WD / norm_W1
        loss, grad_WD = _loss_and_gradient(unit_WD, bias_I[share.items], share, temperature, low_precision)
        # Through the normalisation: what points along the row changes nothing.
        along_W1 = torch.bmm(grad_WD[:, None], unit_WD[:, :, None])[:, 0]
        grad_WD.addcmul_(unit_WD, along_W1, value=-1.0)
        ctx.save_for_backward(grad_WD.div_(norm_W1))
        return loss

    @staticmethod
    def backward(ctx, grad_loss):  # type: ignore[no-untyped-def]
        (grad_WD,) = ctx.saved_tensors
        return grad_WD.mul_(grad_loss), None, None, None, None  # in place: there is no second backward


def _loss_and_gradient(
    unit_WD: Tensor, bias_W: Tensor, share: Share, temperature: float, low_precision: bool
) -> tuple[Tensor, Tensor]:
    user_BD, item_WD = unit_WD[: share.num_users] / temperature, unit_WD[share.num_users :]
    negative_MD = item_WD[share.negatives]
    negative_bias_M = bias_W[share.negatives] + share.negative_log_weight
    places = share.liked_item.long()
    liked_score_E = inner_products(share.liked_indptr, share.liked_item, user_BD, item_WD) + bias_W[places]
    pull_E = torch.empty_like(liked_score_E)  # d loss / d (against - score) of each like
    grad_WD, grad_negative_MD = torch.empty_like(unit_WD), torch.zeros_like(negative_MD)
    grad_user_BD, grad_item_WD = grad_WD[: share.num_users], grad_WD[share.num_users :]
    loss = unit_WD.new_zeros((), dtype=torch.float64)
    factor_MD = negative_MD.bfloat16() if low_precision else negative_MD
    at_once = USERS_AT_ONCE_ON_GPU if unit_WD.is_cuda else USERS_AT_ONCE
    cuts = [*share.liked_indptr[::at_once].tolist(), len(places)]
    met = torch.searchsorted(share.collision_user, torch.arange(0, share.num_users, at_once).to(places)).tolist()
    met.append(len(share.collision_user))
    ceiling = _ceiling(negative_bias_M, temperature)
    if ceiling is not None:
        negative_bias_M = negative_bias_M - ceiling  # one pass over M instead of one over B x M
    for block, start in enumerate(range(0, share.num_users, at_once)):
        users = slice(start, min(start + at_once, share.num_users))
        likes, collisions = slice(cuts[block], cuts[block + 1]), slice(met[block], met[block + 1])
        factor_bD = user_BD[users].to(factor_MD.dtype)
        if low_precision:
            score_bM = (factor_bD @ factor_MD.T).float().add_(negative_bias_M)
        else:
            score_bM = torch.addmm(negative_bias_M, factor_bD, factor_MD.T)
        score_bM[share.collision_user[collisions] - start, share.collision_negative[collisions]] = -torch.inf
        if ceiling is None:
            highest_b = score_bM.max(dim=1).values.clamp_min_(-1e30)  # finite where a user likes them all
            score_bM -= highest_b[:, None]
        else:
            highest_b = score_bM.new_full((len(score_bM),), ceiling)
        weight_bM = score_bM.exp_()
        total_b = weight_bM.sum(dim=1)
        against_b = highest_b + total_b.log()
        counts_b = share.liked_indptr[users.start + 1 : users.stop + 1] - share.liked_indptr[users]
        owner_e = torch.repeat_interleave(torch.arange(users.stop - start, device=places.device), counts_b)
        # log(exp(score) + exp(against)) - score = softplus(against - score), without overflow
        difference_e = against_b[owner_e] - liked_score_E[likes]
        loss += F.softplus(difference_e).double().sum()
        pull_E[likes] = torch.sigmoid(difference_e) / share.num_likes_of_step
        pull_b = torch.zeros_like(against_b).index_add_(0, owner_e, pull_E[likes])
        # The gradient of a score is weight x push; the user's push goes to the narrow side of each product.
        push_b1 = (pull_b / total_b.clamp_min_(1e-30))[:, None]
        rounded_bM = weight_bM.to(factor_MD.dtype)
        grad_user_BD[users] = (rounded_bM @ factor_MD).float() * push_b1
        grad_negative_MD += (rounded_bM.T @ (user_BD[users] * push_b1).to(factor_MD.dtype)).float()
    grad_user_BD -= sparse_times_dense(share.liked_indptr, share.liked_item, pull_E, item_WD)
    pull_by_item_E = pull_E[share.by_item_like.long()]
    pulled_WD = sparse_times_dense(share.by_item_indptr, share.by_item_user, pull_by_item_E, user_BD)
    torch.neg(pulled_WD, out=grad_item_WD)
    grad_item_WD.index_add_(0, share.negatives, grad_negative_MD)
    grad_user_BD /= temperature
    return (loss / share.num_likes_of_step).float(), grad_WD


def _ceiling(bias_M: Tensor, temperature: float) -> float | None:
    """What no score exceeds, if exp(score - ceiling) cannot vanish either: then nobody's highest has to be looked for.

    A cosine lies between -1 and 1. None where scores spread too far for exp's range in float32.
    """
    lowest, highest = (bias_M.min().item(), bias_M.max().item()) if len(bias_M) else (0.0, 0.0)
    spread = 2.0 / temperature + highest - lowest
    return 1.0 / temperature + highest if spread < 80.0 else None

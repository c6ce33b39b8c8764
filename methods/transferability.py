"""Scores that predict how well a target will learn on a candidate's network.

Every function takes float tensors on the CPU, computes in float64 and returns a Python float. The higher the
score, the better the candidate.

Without labels, from both networks' features of the same samples: `rsa`, `cka`. With the target's labels, from
the candidate's features or class probabilities of the target's training samples: `leep`, `nce`, `logme`,
`hscore`, `parc`, `knn`, `logistic`.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

# Maximum number of steps of LogME's fixed point, as in the code of You et al.
_FIXED_POINT_STEPS = 11
# Keeps a precision finite when the features explain the labels perfectly or not at all (as in LogME's code).
_LOGME_EPSILON = 1e-5
_FOLDS = 5


def rsa(candidate: Tensor, target: Tensor) -> float:
    """Representational similarity (Dwivedi & Roig, CVPR 2019): how alike two networks order pairs of samples.

    The Spearman correlation of the dissimilarities 1 − r(f(x_i), f(x_j)) for i < j between the two networks,
    where r is the Pearson correlation.

    Args:
        candidate, target: (n, D) and (n, E), features of the same samples.
    """
    return spearman(dissimilarities(candidate), dissimilarities(target))


def cka(candidate: Tensor, target: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019), 0 to 1.

        ‖XᵀY‖² / (‖XᵀX‖ · ‖YᵀY‖)      (Frobenius norms)

    with the features X and Y centred over the samples; 0 if either is constant.

    Args:
        candidate, target: (n, D) and (n, E), features of the same samples.
    """
    first, second = _centred(candidate), _centred(target)
    scale = (first.T @ first).norm() * (second.T @ second).norm()
    return _ratio((first.T @ second).square().sum(), scale)


def gram(features: Tensor) -> Tensor:
    """Inner products of the centred features of n samples, float64 (n, n)."""
    centred = _centred(features)
    return centred @ centred.T


def alignment(first: Tensor, second: Tensor) -> float:
    """`cka` of two networks by their `gram` matrices of the same samples; equal up to rounding."""
    return _ratio((first * second).sum(), first.norm() * second.norm())


def dissimilarities(features: Tensor) -> Tensor:
    """1 − r for every pair of rows i < j, with r = 0 where a row is constant; float64 (n(n − 1)/2,)."""
    rows = features.double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    # What is left of a constant row is rounding error.
    constant = rows.abs().amax(dim=1, keepdim=True) <= 1e-12 * features.double().abs().amax(1, keepdim=True)
    rows = normalize(rows.masked_fill(constant, 0.0), dim=1)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    return 1.0 - (rows @ rows.T)[first, second]


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation; 0 if either is constant."""
    ranks = [_centred(_ranks(values)) for values in (first, second)]
    return _ratio(ranks[0] @ ranks[1], ranks[0].norm() * ranks[1].norm())


def leep(probabilities: Tensor, labels: Tensor) -> float:
    """Log expected empirical prediction (Nguyen et al., ICML 2020), at most 0.

        mean_i log Σ_z P(y_i | z) · θ(x_i)_z,      P(y, z) = mean_i 1[y_i = y] · θ(x_i)_z

    where θ(x)_z is the probability that the candidate's network gives to its class z.

    Args:
        probabilities: θ, (n, source classes).
        labels: int64 (n,), the target's.
    """
    theta = probabilities.double()
    joint = _one_hot(labels).T @ theta
    given = joint / joint.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    predicted = (given[labels] * theta).sum(dim=1)
    return predicted.clamp_min(torch.finfo(torch.float64).tiny).log().mean().item()


def nce(source_labels: Tensor, labels: Tensor) -> float:
    """Negative conditional entropy (Tran et al., ICCV 2019), at most 0.

        −H(Y | Z) = Σ_{y,z} P(y, z) · log P(y | z)

    where z is the class that the candidate's network predicts and P counts samples.

    Args:
        source_labels: int64 (n,), the predicted classes of the candidate's task.
        labels: int64 (n,), the target's.
    """
    joint = _one_hot(labels).T @ _one_hot(source_labels) / len(labels)
    given = joint / joint.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.xlogy(joint, given).sum().item()


def logme(features: Tensor, labels: Tensor) -> float:
    """Logarithm of maximum evidence (You et al., ICML 2021), per sample, mean over classes.

    For each class y, the evidence of a Bayesian linear regression of the 0/1 labels on the features F,

        log p(y | F) = max_{α,β} log N(y; 0, β⁻¹ I + α⁻¹ F Fᵀ)

    The maximum is found by MacKay's fixed point on the singular values of F:
    γ = Σ σ/(σ + α/β), α = γ / ‖m‖², β = (n − γ) / ‖Fm − y‖², where m is the posterior mean and σ are the
    squared singular values.

    Args:
        features: F, (n, D).
        labels: int64 (n,).
    """
    targets = _one_hot(labels)
    count = len(labels)
    left, singular, _ = torch.linalg.svd(features.double(), full_matrices=False)
    kept = singular > singular.max() * max(features.shape) * torch.finfo(torch.float64).eps
    sigma = singular[kept].square()[:, None]
    explained = (left[:, kept].T @ targets).square()
    rest = (targets.square().sum(dim=0) - explained.sum(dim=0)).clamp_min(0.0)

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms of the posterior mean and of the residual, per class, at α/β = t."""
        squared_mean = (sigma * explained / (sigma + t).square()).sum(dim=0)
        return squared_mean, (explained * (t / (sigma + t)).square()).sum(dim=0) + rest

    alpha, beta = targets.new_ones(targets.shape[1]), targets.new_ones(targets.shape[1])
    for _ in range(_FIXED_POINT_STEPS):
        before = alpha / beta
        gamma = (sigma / (sigma + before)).sum(dim=0)
        squared_mean, residual = moments(before)
        alpha = gamma / (squared_mean + _LOGME_EPSILON)
        beta = (count - gamma) / (residual + _LOGME_EPSILON)
        if bool(((alpha / beta - before).abs() <= 1e-3 * before).all()):
            break
    squared_mean, residual = moments(alpha / beta)
    evidence = (
        count / 2 * (beta / (2 * torch.pi)).log()
        - torch.log1p(sigma * beta / alpha).sum(dim=0) / 2
        - (beta * residual + alpha * squared_mean) / 2
    )
    return (evidence / count).mean().item()


def hscore(features: Tensor, labels: Tensor) -> float:
    """H-score (Bao et al., ICIP 2019): how far apart the classes' mean features are.

        tr(cov(f)⁺ · cov(E[f | y]))

    with the pseudoinverse, and no shrinkage. With no more samples than features it reaches its maximum,
    the number of classes − 1, whatever the features are.

    Args:
        features: (n, D).
        labels: int64 (n,).
    """
    centred, members = _centred(features), _one_hot(labels)
    means = members @ (members.T @ centred / members.sum(dim=0).clamp_min(1.0)[:, None])
    covariance = centred.T @ centred
    return torch.trace(torch.linalg.pinv(covariance, hermitian=True) @ (means.T @ means)).item()


def parc(features: Tensor, labels: Tensor) -> float:
    """Pairwise annotation representation comparison (Bolya et al., NeurIPS 2021), without their PCA.

    The Spearman correlation, over pairs of samples i < j, of the dissimilarities 1 − r of their features with
    those of their one-hot labels, where r is the Pearson correlation.

    Args:
        features: (n, D).
        labels: int64 (n,).
    """
    return spearman(dissimilarities(features), dissimilarities(_one_hot(labels)))


def knn(features: Tensor, labels: Tensor, *, neighbours: int = 5) -> float:
    """Leave-one-out accuracy of a k-nearest-neighbour classifier (as Renggli et al., CVPR 2022, with k = 1).

    Euclidean distances; the lowest class wins a tie of votes.

    Args:
        features: (n, D).
        labels: int64 (n,).
        neighbours: k; at most n − 1 are used.
    """
    distances = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, : min(neighbours, len(labels) - 1)]
    votes = _one_hot(labels)[nearest].sum(dim=1)
    return (votes.argmax(dim=1) == labels).double().mean().item()


def logistic(features: Tensor, labels: Tensor) -> float:
    """Cross-validated accuracy of a logistic regression on standardised features (scikit-learn).

    Stratified folds in the samples' order, five or as many as the smallest class has samples. Every class
    needs at least two.

    Args:
        features: (n, D).
        labels: int64 (n,).
    """
    # Slow to import (2 s), and only needed for this score.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Ten times faster than the default solver on a few hundred samples.
    classifier = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cg", max_iter=1000))
    folds = StratifiedKFold(min(_FOLDS, int(labels.unique(return_counts=True)[1].min())))
    inputs, targets = features.double().numpy(), labels.numpy()
    return float(cross_val_score(classifier, inputs, targets, cv=folds).mean())


def _one_hot(labels: Tensor) -> Tensor:
    """float64 (n, classes)."""
    return one_hot(labels).double()


def _centred(features: Tensor) -> Tensor:
    return features.double() - features.double().mean(dim=0)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties sharing their mean rank; float64. Values equal to 1e-12 are ties."""
    _, group, counts = (values / 1e-12).round().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[group]


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    return (numerator / denominator).item() if denominator > 0 else 0.0

"""Transferability scores against slow float64 loops, scikit-learn and SciPy."""

import math
import random

import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, spearmanr
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from methods import transferability as scores

COUNT, WIDTH, CLASSES, SOURCE = 24, 5, 3, 4


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 1, 0, 2] * 4)


@pytest.fixture
def features(labels: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(COUNT, WIDTH, generator=generator) + 0.7 * labels[:, None]


@pytest.fixture
def probabilities() -> Tensor:
    return torch.randn(COUNT, SOURCE, generator=torch.Generator().manual_seed(2)).double().softmax(1)


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    squares = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return product / math.sqrt(squares)


def dissimilarities(rows: list[list[float]]) -> list[float]:
    return [1 - pearson(rows[i], rows[j]) for i in range(len(rows)) for j in range(i + 1, len(rows))]


def one_hot(labels: Tensor) -> list[list[float]]:
    return [[float(label == index) for index in range(CLASSES)] for label in labels.tolist()]


def test_rsa_correlates_the_dissimilarities_of_pairs(features: Tensor, probabilities: Tensor) -> None:
    slow = [dissimilarities(rows.double().tolist()) for rows in (features, probabilities)]
    assert scores.rsa(features, probabilities) == pytest.approx(spearmanr(*slow).statistic, abs=1e-12)
    assert scores.rsa(features, 3 * features + 1) == pytest.approx(1)


def test_cka_compares_gram_matrices(features: Tensor, probabilities: Tensor) -> None:
    """By the definition: HSIC of the centred Gram matrices, normalised."""

    def gram(rows: list[list[float]]) -> list[list[float]]:
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        centred = [[x - mean for x, mean in zip(row, means, strict=True)] for row in rows]
        return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in centred] for a in centred]

    def product(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(a[i][j] * b[i][j] for i in range(COUNT) for j in range(COUNT))

    a, b = gram(features.double().tolist()), gram(probabilities.tolist())
    slow = product(a, b) / math.sqrt(product(a, a) * product(b, b))
    assert scores.cka(features, probabilities) == pytest.approx(slow, abs=1e-12)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
    assert scores.cka(features, 5 * features.double() @ rotation + 2) == pytest.approx(1)


def test_leep_is_the_mean_logarithm_of_the_expected_prediction(probabilities: Tensor, labels: Tensor) -> None:
    theta, y = probabilities.tolist(), labels.tolist()
    joint = [
        [sum(theta[i][z] for i in range(COUNT) if y[i] == c) / COUNT for z in range(SOURCE)]
        for c in range(CLASSES)
    ]
    marginal = [sum(joint[c][z] for c in range(CLASSES)) for z in range(SOURCE)]
    slow = 0.0
    for i in range(COUNT):
        slow += math.log(sum(joint[y[i]][z] / marginal[z] * theta[i][z] for z in range(SOURCE))) / COUNT
    assert scores.leep(probabilities, labels) == pytest.approx(slow, abs=1e-12)
    assert scores.leep(torch.eye(CLASSES)[labels], labels) == pytest.approx(0)


def test_leep_equals_nce_for_certain_predictions(labels: Tensor) -> None:
    predicted = torch.tensor([0, 1, 3, 3, 0, 1] * 4)
    assert scores.leep(torch.eye(SOURCE)[predicted], labels) == pytest.approx(scores.nce(predicted, labels))


def test_nce_is_the_negative_conditional_entropy(labels: Tensor) -> None:
    predicted = torch.tensor([0, 1, 3, 3] * 6)
    shares = [count / COUNT for count in labels.bincount().tolist()]
    entropy = -sum(share * math.log(share) for share in shares)
    slow = mutual_info_score(labels.numpy(), predicted.numpy()) - entropy
    assert scores.nce(predicted, labels) == pytest.approx(slow, abs=1e-12)
    assert scores.nce(labels, labels) == pytest.approx(0)


@pytest.mark.parametrize(
    ("width", "below"),
    [(WIDTH, 1e-3), (40, 0.03)],  # with more features than samples, eleven steps do not quite converge
)
def test_logme_is_the_highest_evidence(width: int, below: float, labels: Tensor) -> None:
    """The density of the labels under the regression's marginal distribution, maximised by SciPy."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(COUNT, width, generator=generator).double() + labels[:, None]
    gram = (features @ features.T).numpy()
    identity = torch.eye(COUNT).double().numpy()
    slow = 0.0
    for column in zip(*one_hot(labels), strict=True):

        def negative(logs: tuple[float, float], column: tuple[float, ...] = column) -> float:
            covariance = identity * math.exp(-logs[1]) + gram * math.exp(-logs[0])
            return -multivariate_normal.logpdf(column, cov=covariance)

        slow -= minimize(negative, x0=(0.0, 0.0), method="Nelder-Mead").fun
    highest = slow / CLASSES / COUNT
    assert highest - below < scores.logme(features, labels) < highest + 1e-4


def test_hscore_relates_the_spread_of_class_means_to_the_whole(features: Tensor, labels: Tensor) -> None:
    whole = EmpiricalCovariance().fit(features.double().numpy())
    members = [features[labels == label].double() for label in range(CLASSES)]
    means = torch.cat([rows.mean(dim=0).expand(len(rows), -1) for rows in members])
    between = EmpiricalCovariance().fit(means.numpy()).covariance_
    slow = (whole.get_precision() @ between).trace()
    assert scores.hscore(features, labels) == pytest.approx(slow, abs=1e-9)


def test_parc_correlates_dissimilarities_of_features_and_labels(features: Tensor, labels: Tensor) -> None:
    # Rounded: equal values must tie.
    wanted = [round(value, 9) for value in dissimilarities(one_hot(labels))]
    slow = spearmanr(dissimilarities(features.double().tolist()), wanted).statistic
    assert scores.parc(features, labels) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("neighbours", [1, 5])
def test_knn_leaves_the_sample_itself_out(neighbours: int, features: Tensor, labels: Tensor) -> None:
    inputs, targets = features.double().numpy(), labels.numpy()
    right = 0
    for i in range(COUNT):
        others = [j for j in range(COUNT) if j != i]
        classifier = KNeighborsClassifier(neighbours).fit(inputs[others], targets[others])
        right += classifier.predict(inputs[[i]])[0] == targets[i]
    assert scores.knn(features, labels, neighbours=neighbours) == pytest.approx(right / COUNT)


def test_logistic_averages_over_folds_that_hold_every_class(features: Tensor, labels: Tensor) -> None:
    """Two samples per class leave two folds: each is classified by the other."""
    few = torch.tensor([0, 1, 2, 3, 4, 5])
    inputs, targets = features[few].double(), labels[few]
    halves = [few[:3], few[3:]]
    assert targets.tolist() == [0, 1, 2, 1, 0, 2]
    right = 0
    for fitted, tested in (halves, halves[::-1]):
        mean, std = inputs[fitted].mean(dim=0), inputs[fitted].std(dim=0, correction=0)
        scaled = ((inputs - mean) / std).numpy()
        classifier = LogisticRegression(max_iter=1000).fit(scaled[fitted], targets[fitted].numpy())
        right += int((classifier.predict(scaled[tested]) == targets[tested].numpy()).sum())
    assert scores.logistic(inputs, targets) == pytest.approx(right / 6)
    assert scores.logistic(torch.eye(CLASSES)[labels], labels) == 1.0


def test_features_that_tell_the_classes_apart_score_higher(features: Tensor, labels: Tensor) -> None:
    shuffled = labels[torch.tensor(random.Random(1).sample(range(COUNT), COUNT))]
    for score in (scores.logme, scores.hscore, scores.parc, scores.knn, scores.logistic):
        assert score(features, labels) > score(features, shuffled), score.__name__


def test_a_dead_network_gets_finite_scores(labels: Tensor) -> None:
    dead = torch.zeros(COUNT, WIDTH)
    certain = torch.tensor([[1.0, 0.0]]).expand(COUNT, -1)
    found = [score(dead, labels) for score in (scores.logme, scores.hscore, scores.parc, scores.knn)]
    found += [score(dead, dead) for score in (scores.rsa, scores.cka)]
    found += [scores.leep(certain, labels), scores.nce(torch.zeros_like(labels), labels)]
    assert all(map(math.isfinite, found))


def test_the_alignment_of_gram_matrices_is_cka(features: Tensor, probabilities: Tensor) -> None:
    found = scores.alignment(scores.gram(features), scores.gram(probabilities))
    assert found == pytest.approx(scores.cka(features, probabilities), abs=1e-12)

"""The chain from distillation over attention distance to accuracy, on data made with a known curve."""

import numpy as np
import pytest

from graft.probes import mediation
from graft.reporting import stats

IMAGES, LOOKED_AT = 4000, 200
MARGIN = 0.03  # of accuracy
ROLES = {"baseline": "baseline", "cnn": "cnn"}
DOSES = ["near", "middle", "far"]
DISTANCE = {"near": 1.0, "middle": 2.0, "far": 4.0, "baseline": 3.5, "cnn": 2.5}


def accuracy(distance: float) -> float:
    """The true curve: linear pieces, as between the imposed distances."""
    return float(np.interp(distance, [1.0, 2.0, 4.0], [0.4, 0.55, 0.65]))


@pytest.fixture
def made():
    """Distances and correctness of three seeds; the baseline has a bonus at its distance that no curve knows of."""
    rng = np.random.default_rng(0)
    distance = {name: {seed: value + rng.normal(0, 0.01, LOOKED_AT) for seed in range(3)}
                for name, value in DISTANCE.items()}
    hard = rng.random(IMAGES)
    correct = {name: {seed: hard + rng.normal(0, 0.05, IMAGES) < accuracy(DISTANCE[name]) for seed in range(3)}
               for name in DISTANCE}
    return distance, correct


def test_weights_are_those_of_linear_interpolation():
    rng = np.random.default_rng(1)
    for knots in ([1.0, 2.0, 4.0], [4.0, 1.0, 2.0]):
        values = rng.random(3)
        for at in (0.5, 1.0, 1.7, 3.9, 4.0, 9.0):
            expected = np.interp(at, np.sort(knots), values[np.argsort(knots)])
            assert mediation.weights(np.array(knots), at) @ values == pytest.approx(expected)


def test_effect_that_the_distance_explains(made):
    distance, correct = made
    moved, harms, same, explained = mediation.chain(ROLES, DOSES, distance, correct, MARGIN)
    assert [claim["verdict"] for claim in (moved, harms, same, explained)] == ["supported"] * 2 + [
        "contradicted", "supported"]
    assert "33% of the range that was imposed" in moved["reason"]
    through, predicted, observed, rest = explained["legs"]
    assert through["difference"] == pytest.approx(0, abs=0.01)
    assert predicted["difference"] == pytest.approx(accuracy(2.5) - accuracy(3.5), abs=0.01)
    assert observed["difference"] - predicted["difference"] == pytest.approx(rest["difference"], abs=1e-12)
    assert rest["verdict"] == "supported" and rest["margin"] == MARGIN
    whole = [np.stack([correct[name][seed] for seed in range(3)]).astype(float) for name in ("cnn", "baseline")]
    assert observed["ci95"] == pytest.approx(stats.paired_difference(*whole, draws=1)["ci95"])


def test_effect_of_something_else(made):
    """The arm is as local as before, and better by what no distance predicts."""
    distance, correct = made
    rng = np.random.default_rng(2)
    correct["cnn"] = {seed: rows | (rng.random(IMAGES) < 0.2) for seed, rows in correct["cnn"].items()}
    explained = mediation.chain(ROLES, DOSES, distance, correct, MARGIN)[3]
    through, predicted, observed, rest = (leg["verdict"] for leg in explained["legs"])
    assert through == predicted == observed == "supported"
    assert explained["verdict"] == rest == "contradicted"


def test_gain_is_explained_as_a_loss_is(made):
    """Roles the other way round: the arm is wider, and better by what the curve predicts."""
    claims = mediation.chain({"baseline": "cnn", "cnn": "baseline"}, DOSES, *made, MARGIN)
    assert [claim["verdict"] for claim in claims] == ["contradicted", "supported", "contradicted", "supported"]
    assert all(leg["difference"] > 0.03 for leg in claims[3]["legs"][1:3])


def test_curve_that_misses_the_baseline_explains_nothing(made):
    """What the imposing term costs at every distance is no effect of distance."""
    distance, correct = made
    rng = np.random.default_rng(3)
    for name in DOSES:
        correct[name] = {seed: rows & (rng.random(IMAGES) > 0.15) for seed, rows in correct[name].items()}
    explained = mediation.chain(ROLES, DOSES, distance, correct, MARGIN)[3]
    through, predicted, observed, _ = (leg["verdict"] for leg in explained["legs"])
    assert through == explained["verdict"] == "contradicted" and predicted == observed == "supported"


def test_nothing_to_explain(made):
    distance, correct = made
    distance["cnn"], correct["cnn"] = distance["baseline"], correct["baseline"]
    explained = mediation.chain(ROLES, DOSES, distance, correct, MARGIN)[3]
    assert explained["verdict"] == "undecided" and explained["legs"][-1]["difference"] == 0


def test_agreement_that_the_data_do_not_show(made):
    """Both changes are told from none, but what may lie between them is more than the margin."""
    _, predicted, observed, rest = (claim := mediation.chain(ROLES, DOSES, *made, 0.001)[3])["legs"]
    assert predicted["verdict"] == observed["verdict"] == "supported"
    assert claim["verdict"] == rest["verdict"] == "undecided" and rest["ci95"][0] < 0 < rest["ci95"][1]


def test_order_of_doses_does_not_move_the_prediction(made):
    distance, correct = made
    legs = [mediation.chain(ROLES, doses, distance, correct, MARGIN)[3]["legs"] for doses in (DOSES, DOSES[::-1])]
    for one, other in zip(*legs):
        assert one["difference"] == pytest.approx(other["difference"]) and one["ci95"] == pytest.approx(other["ci95"])


def test_nothing_is_extrapolated(made):
    distance, correct = made
    beside = {**distance, "cnn": {seed: rows - 1.6 for seed, rows in distance["cnn"].items()}}  # 0.1 of a range of 3
    assert len(mediation.chain(ROLES, DOSES, beside, correct, MARGIN)[3]["legs"]) == 4
    distance["cnn"] = {seed: rows - 2.0 for seed, rows in distance["cnn"].items()}
    explained = mediation.chain(ROLES, DOSES, distance, correct, MARGIN)[3]
    assert explained["verdict"] == "undecided" and explained["legs"] == []
    assert "not within the imposed ones" in explained["reason"]


def test_missing_arms_and_seeds(made):
    distance, correct = made
    assert mediation.chain(ROLES, [], distance, correct, MARGIN) == []
    without = {name: rows for name, rows in correct.items() if name != "far"}
    assert "far" in mediation.chain(ROLES, DOSES, distance, without, MARGIN)[3]["reason"]
    correct["far"] = {0: correct["far"][0]}
    assert "fewer than two seeds" in mediation.chain(ROLES, DOSES, distance, correct, MARGIN)[3]["reason"]


def test_curve_names_every_dose(made):
    distance, correct = made
    points = mediation.curve(DOSES, distance, correct)
    assert [point["condition"] for point in points] == DOSES
    for point in points:
        assert point["attention_distance"]["mean"] == pytest.approx(DISTANCE[point["condition"]], abs=0.01)
        assert point["accuracy"]["mean"] == pytest.approx(accuracy(DISTANCE[point["condition"]]), abs=0.03)

import copy

import pytest
import torch
from torch import Tensor

from model.labels import CLASSES
from model.network.deepser import DeepSER
from model.network.metaclassifier import WIDTH, Ensemble, MetaClassifier, attribute_unit, meta_input
from model.spec import EnsembleSpec
from tests.model.tiny import tiny_networks, tiny_spec

MEMBERS = 3
UNTRAINED = [CLASSES.index("surprise"), CLASSES.index("contempt")]


@pytest.fixture(scope="module")
def spec() -> EnsembleSpec:
    return tiny_spec()


def batch_for(spec: EnsembleSpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(5)
    frames = {encoder.name: torch.randn(4, 3 * encoder.stack, encoder.dim) for encoder in spec.encoders}
    return frames, {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in frames.items()}


def random_metas(count: int) -> list[MetaClassifier]:
    torch.manual_seed(1)
    return [MetaClassifier(MEMBERS) for _ in range(count)]


def test_an_untrained_class_has_probability_exactly_zero(spec: EnsembleSpec) -> None:
    members, meta = tiny_networks(spec)
    with torch.no_grad():
        for head in (meta.linear, *(member.classifier for member in members)):
            head.bias[UNTRAINED] = 100.0  # it would win
        probabilities, _, by_member = Ensemble(spec, members, meta).eval()(*batch_for(spec))
    assert (probabilities[:, UNTRAINED] == 0.0).all()
    assert (by_member[:, :, UNTRAINED] == 0.0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))


def test_attributes_stay_in_their_range(spec: EnsembleSpec) -> None:
    members, meta = tiny_networks(spec)
    with torch.no_grad():
        meta.linear.bias[len(CLASSES) :] = torch.tensor([100.0, -100.0, 0.5])
        _, attributes, _ = Ensemble(spec, members, meta).eval()(*batch_for(spec))
    assert attributes[:, 0].tolist() == [7.0] * 4
    assert attributes[:, 1].tolist() == [1.0] * 4


def test_temperature_divides_the_logits_of_the_meta_classifier_alone(spec: EnsembleSpec) -> None:
    members, meta = tiny_networks(spec)
    inputs = batch_for(spec)
    with torch.no_grad():
        sharp, _, first = Ensemble(spec, members, meta, temperature=1.0).eval()(*inputs)
        flat, _, second = Ensemble(spec, members, meta, temperature=2.0).eval()(*inputs)
    trained = [index for index in range(len(CLASSES)) if index not in UNTRAINED]
    expected = torch.softmax(sharp[:, trained].log() / 2.0, dim=1)
    torch.testing.assert_close(flat[:, trained], expected)
    assert torch.equal(first, second)


def test_nothing_stands_behind_the_linear_layer() -> None:
    (meta,) = random_metas(1)
    first, second = (10 * torch.randn(2, 5, WIDTH * MEMBERS)).unbind(0)
    origin = torch.zeros_like(first)
    with torch.no_grad():
        for index in range(2):
            total = meta(first)[index] + meta(second)[index] - meta(origin)[index]
            torch.testing.assert_close(meta(first + second)[index], total, atol=1e-4, rtol=1e-4)


def test_an_average_of_metas_gives_the_average_of_their_outputs() -> None:
    metas = random_metas(4)
    souped = copy.deepcopy(metas[0])
    states = [meta.state_dict() for meta in metas]
    souped.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    x = torch.rand(6, WIDTH * MEMBERS)
    with torch.no_grad():
        for index in range(2):
            average = torch.stack([meta(x)[index] for meta in metas]).mean(dim=0)
            torch.testing.assert_close(souped(x)[index], average)


def test_members_stand_side_by_side_in_order() -> None:
    probabilities, attributes = torch.rand(2, MEMBERS, 8), 1.0 + 6.0 * torch.rand(2, MEMBERS, 3)
    joined = meta_input(probabilities, attributes).reshape(2, MEMBERS, WIDTH)
    assert torch.equal(joined[:, :, :8], probabilities)
    assert torch.equal(joined[:, :, 8:], attribute_unit(attributes))
    assert attribute_unit(torch.tensor([1.0, 4.0, 7.0])).tolist() == [0.0, 0.5, 1.0]


def test_member_probabilities_are_the_members_own(spec: EnsembleSpec) -> None:
    members, meta = tiny_networks(spec)
    frames, masks = batch_for(spec)
    with torch.no_grad():
        _, _, by_member = Ensemble(spec, members, meta).eval()(frames, masks)
        trained = [index for index in range(len(CLASSES)) if index not in UNTRAINED]
        for index, member in enumerate(members):
            assert isinstance(member, DeepSER)
            expected = torch.softmax(member(frames, masks)[0][:, trained], dim=1)
            torch.testing.assert_close(by_member[:, index, trained], expected)

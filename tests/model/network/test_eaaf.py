"""Adaptive fusion, free and constrained."""

import torch

from model.network.eaaf import FreeGates, Shares, presence_of, terms_of

DIM, ROWS = 6, 4


def vectors(count: int) -> list[torch.Tensor]:
    torch.manual_seed(count)
    return [torch.randn(ROWS, DIM) for _ in range(count)]


def test_free_gates_of_two_modalities_are_the_formula() -> None:
    text, audio = vectors(2)
    fusion = FreeGates(DIM, 2)
    with torch.no_grad():
        fusion.beta.fill_(0.4)
        g = torch.cat([text, audio, text * audio], dim=1)
        (w_text, w_audio), (b_text, b_audio) = fusion.gates.weight.chunk(2), fusion.gates.bias.chunk(2)
        a_text, a_audio = torch.sigmoid(g @ w_text.t() + b_text), torch.sigmoid(g @ w_audio.t() + b_audio)
        expected = a_text * text + a_audio * audio + 0.4 * text * audio
        torch.testing.assert_close(fusion([text, audio]), expected)


def test_three_modalities_have_a_gate_each_and_a_weight_for_every_two() -> None:
    a, b, c = vectors(3)
    fusion = FreeGates(DIM, 3)
    assert fusion.gates.out_features == 3 * DIM
    with torch.no_grad():
        fusion.gates.weight.zero_()
        fusion.gates.bias.fill_(-1e9)
        fusion.beta.copy_(torch.tensor([1.0, 10.0, 100.0]))
        torch.testing.assert_close(fusion([a, b, c]), a * b + 10 * a * c + 100 * b * c)


def test_shares_sum_to_one_and_weigh_terms_of_one_length() -> None:
    modalities = vectors(3)
    fusion = Shares(DIM, 3)
    fused, shares = fusion(modalities, torch.ones(ROWS, 3, dtype=torch.bool))
    assert shares.shape == (ROWS, 6)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(ROWS))
    terms = torch.stack(terms_of(modalities), dim=1)
    units = terms / terms.square().mean(dim=2, keepdim=True).sqrt()
    torch.testing.assert_close(fused, (shares.unsqueeze(2) * units).sum(dim=1), atol=1e-4, rtol=1e-4)


def test_a_share_does_not_say_how_long_a_vector_was() -> None:
    """The parts of the fused vector stand in the ratio of the shares, however long the modalities' vectors are."""
    text, audio = vectors(2)
    fusion, there = Shares(DIM, 2), torch.ones(ROWS, 2, dtype=torch.bool)
    with torch.no_grad():
        fusion.scores.weight.zero_()
        wanted = torch.tensor([0.22, 0.76, 0.02]).log() + 2.0  # the bound leaves scores between -2 and 2
        fusion.scores.bias.copy_(2.0 * torch.atanh(wanted / 2.0))
        fused, shares = fusion([text * 50.0, audio * 0.02], there)
    torch.testing.assert_close(shares, torch.tensor([[0.22, 0.76, 0.02]]).expand(ROWS, 3), atol=1e-5, rtol=0)
    units = [v / v.square().mean(dim=1, keepdim=True).sqrt() for v in (text, audio, text * audio)]
    torch.testing.assert_close(fused, 0.22 * units[0] + 0.76 * units[1] + 0.02 * units[2], atol=5e-3, rtol=0)


def test_no_modality_is_silenced_for_good() -> None:
    """Whatever the scores, what is there keeps a share that its gradient can come through."""
    modalities = vectors(2)
    fusion = Shares(DIM, 2)
    with torch.no_grad():
        fusion.scores.bias.copy_(torch.tensor([500.0, -500.0, -500.0]))
        _, shares = fusion(modalities, torch.ones(ROWS, 2, dtype=torch.bool))
    assert shares.min() > 0.01
    assert shares.max() > 0.9


def test_what_an_utterance_does_not_have_has_no_share() -> None:
    modalities = vectors(3)
    modalities[1] = torch.zeros(ROWS, DIM)
    present = torch.tensor([[True, False, True]]).expand(ROWS, 3)
    assert presence_of(present)[0].tolist() == [True, False, True, False, True, False]
    fused, shares = Shares(DIM, 3)(modalities, present)
    assert (shares[:, [1, 3, 5]] == 0).all()
    torch.testing.assert_close(shares[:, [0, 2, 4]].sum(dim=1), torch.ones(ROWS))
    assert torch.isfinite(fused).all()


def test_every_parameter_receives_gradient_even_beside_a_vector_of_zeros() -> None:
    modalities = vectors(2)
    modalities[0] = torch.cat([modalities[0][:2], torch.zeros(2, DIM)])
    present = torch.tensor([[True, True]] * 2 + [[False, True]] * 2)
    shares, free = Shares(DIM, 2), FreeGates(DIM, 2)
    (shares(modalities, present)[0].square().sum() + free(modalities).square().sum()).backward()
    for name, parameter in (*shares.named_parameters(), *free.named_parameters()):
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name

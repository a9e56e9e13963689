"""The bias that VAD-guided attention adds to its scores."""

import numpy as np
import torch

from model.network.cross_attention import CrossLayer
from model.network.vga import VadGuide

DIM = 8


def guide(weight: float = 0.7) -> VadGuide:
    torch.manual_seed(0)
    made = VadGuide(DIM)
    with torch.no_grad():
        made.weight.fill_(weight)
    return made


def layer(*, guided: bool) -> CrossLayer:
    torch.manual_seed(1)
    return CrossLayer(DIM, heads=2, feed_forward=12, dropout=0.0, guided=guided)


def everything(rows: int, steps: int) -> torch.Tensor:
    return torch.ones(rows, steps, dtype=torch.bool)


def test_the_bias_is_the_formula() -> None:
    made, queries, keys = guide(), torch.randn(2, 3, DIM), torch.randn(2, 5, DIM)
    with torch.no_grad():
        found = made(queries, keys).numpy()
        v_query, v_key = made.query(queries).numpy(), made.key(keys).numpy()
    assert found.shape == (2, 1, 3, 5)
    for b, i, j in np.ndindex(2, 3, 5):
        expected = -0.7 * np.linalg.norm(v_query[b, i] - v_key[b, j])
        np.testing.assert_allclose(found[b, 0, i, j], expected, atol=2e-6)


def test_guided_attention_is_the_formula() -> None:
    """softmax(Q K^T / sqrt(d_k) + lambda M) V of each head, in double loops, padded keys left out."""
    made, x, others = layer(guided=True).double(), torch.randn(1, 3, DIM).double(), torch.randn(1, 4, DIM).double()
    mask = torch.tensor([[True, True, True, False]])
    assert made.guide is not None
    with torch.no_grad():
        made.guide.weight.fill_(1.3)
        q, k, v = made.q(x)[0].numpy(), made.k(others)[0].numpy(), made.v(others)[0].numpy()
        near = made.guide.query(x)[0].numpy(), made.guide.key(others)[0].numpy()
        joined = np.zeros((3, DIM))
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(3):
                scores = [
                    q[i, head] @ k[j, head] / 2.0 - 1.3 * np.linalg.norm(near[0][i] - near[1][j]) for j in range(3)
                ]
                weights = np.exp(scores) / np.exp(scores).sum()
                joined[i, head] = weights @ v[:3, head]
        expected = made.attention_out(torch.from_numpy(joined))
        torch.testing.assert_close(made._attend(x, others, mask)[0], expected, atol=1e-8, rtol=0)


def test_the_slope_at_distance_zero_is_finite() -> None:
    """Points that coincide are where an unguarded root has a slope of infinity times zero."""
    made = guide()
    with torch.no_grad():
        made.key.weight.copy_(made.query.weight)
        made.query.bias.zero_()
    x = torch.randn(1, 4, DIM, requires_grad=True)
    bias = made(x, x)
    assert bias.diagonal(dim1=2, dim2=3).abs().max() < 1e-5
    assert bias.abs().max() > 0.1
    bias.sum().backward()
    assert x.grad is not None
    for gradient in (x.grad, *(p.grad for p in made.parameters())):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_gradients_are_those_of_finite_differences() -> None:
    made = layer(guided=True).double()
    x, others = torch.randn(1, 3, DIM).double(), torch.randn(1, 4, DIM).double()
    made(x, others, everything(1, 4)).square().sum().backward()
    assert made.guide is not None
    for parameter in (made.guide.weight, made.guide.query.weight, made.guide.key.weight):
        assert parameter.grad is not None
        slope, flat, losses = float(parameter.grad.flatten()[0]), parameter.data.view(-1), []
        for step in (1e-5, -1e-5):
            flat[0] += step
            with torch.no_grad():
                losses.append(float(made(x, others, everything(1, 4)).square().sum()))
            flat[0] -= step
        np.testing.assert_allclose(slope, (losses[0] - losses[1]) / 2e-5, rtol=1e-4)
        assert abs(slope) > 1e-6


def test_over_one_key_guidance_is_a_no_op_and_over_several_it_is_not() -> None:
    """What pooling both sides first does: lambda and both projections get no gradient. Sequences are why they do."""
    for keys, is_dead in ((1, True), (6, False)):
        made = layer(guided=True)
        assert made.guide is not None
        x, others = torch.randn(3, 2, DIM), torch.randn(3, keys, DIM)
        before = made(x, others, everything(3, keys))
        before.square().sum().backward()
        gradients = [float(p.grad.abs().max()) for p in made.guide.parameters() if p.grad is not None]
        assert len(gradients) == 4
        assert (max(gradients) < 1e-6) if is_dead else (min(gradients) > 1e-6)
        with torch.no_grad():
            made.guide.weight.fill_(5.0)
            moved = float((made(x, others, everything(3, keys)) - before).abs().max())
        assert (moved < 1e-6) if is_dead else (moved > 1e-3)


def test_without_weight_guided_attention_is_plain_attention() -> None:
    guided, plain = layer(guided=True), layer(guided=False)
    plain.load_state_dict({n: v for n, v in guided.state_dict().items() if not n.startswith("guide.")})
    x, others, mask = torch.randn(2, 3, DIM), torch.randn(2, 5, DIM), everything(2, 5)
    with torch.no_grad():
        assert not torch.allclose(guided(x, others, mask), plain(x, others, mask), atol=1e-4)
        assert guided.guide is not None
        guided.guide.weight.zero_()
        torch.testing.assert_close(guided(x, others, mask), plain(x, others, mask), atol=1e-6, rtol=0)


def test_where_no_key_is_real_nothing_is_attended_to() -> None:
    made = layer(guided=True).eval()
    x, others = torch.randn(1, 3, DIM), torch.randn(1, 4, DIM)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(made(x, others, nothing), made(x, others * 9.0, nothing))
        expected = x + made.contract(torch.nn.functional.gelu(made.expand(made.feed_forward_norm(x))))
        torch.testing.assert_close(made(x, others, nothing), expected)

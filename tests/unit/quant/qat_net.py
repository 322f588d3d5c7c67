"""A small net to train late on quantized weights, and what the exporter makes of it."""

import torch
from torch import Tensor, nn

from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.quant.qat import LateQAT, Start
from qpack.recipe import Recipe, parse_recipe

NOW = Start(step=0)
RULES = {
    "absmax": 'bits = 4\nscale = "absmax"',
    "floored": 'bits = 6\nscale_floor = "1/qmax"',
    "sigma": 'bits = 5\nscale = "sigma"\nk = 7.0',
    "percentile": 'qmax = 5\nscale = "percentile"',
    "unclipped": 'bits = 5\nscale = "sigma"\nk = 9.0\nclip = false\noctave = 4',
}


class Net(nn.Module):
    """Two layers, a bias, a table that is tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32, bias=False)
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.table.weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        out: Tensor = self.head(x + self.down(torch.tanh(self.up(x))))
        return out


def some_tokens(seed: int = 0) -> Tensor:
    return torch.randint(40, (8, 6), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    return loss_on(model, some_tokens(seed))


def loss_on(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def recipe_of(rule: str = RULES["absmax"], *, knob: str = "none", follow: str = "") -> Recipe:
    text = f'[knob]\nname = "{knob}"\n[[rule]]\nmatch = "class:matrix"\n{rule}\n{follow}\n'
    return parse_recipe(
        f'{text}[[rule]]\nmatch = "class:embedding"\n{rule}\n[[rule]]\n'
        'match = ["class:vector", "class:buffer"]\ntype = "float32"',
        name="r",
    )


def exported(model: nn.Module, recipe: Recipe, value: float = 0.0) -> dict[str, Tensor]:
    """What the exporter makes of every integer tensor when it rounds to nearest."""
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = make_plan(tensors, classify(model), {}, recipe)
    stored = Quantizer(tensors, plan, None).quantize(value)
    return {name: torch.from_numpy(tensor.dequantize()) for name, tensor in stored.items()}


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def switched(qat: LateQAT, step: int = 0, progress: float = 0.0, rate: float = 1.0) -> LateQAT:
    assert qat.on_step(step, progress, rate)
    return qat


def rounded(qat: LateQAT, model: Net) -> Tensor:
    """The up weight as the context shows it."""
    with qat.quantized():
        return model.up.weight.detach().clone()

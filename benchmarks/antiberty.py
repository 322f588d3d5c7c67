"""AntiBERTy, a BERT of antibodies (Ruffolo et al. 2021, arXiv:2112.07782), from its wheel alone.

    pip download --no-deps antiberty==0.1.3

The wheel (MIT) holds the trained weights: 26 M parameters in 8 layers. The architecture is BERT's
(Devlin et al. 2018, arXiv:1810.04805) and written out here in plain PyTorch, so that nothing but
the file is needed. Its texts are amino acids; sequences to calibrate and to score on are drawn from
the model itself, starting from two well-known antibodies: in every round a share of the residues is
masked and drawn anew.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WEIGHTS = "antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin"
VOCABULARY = "PUCSMACDEFGHIKLMNPQRSTVWY"
"""The first five are PAD, UNK, CLS, SEP and MASK, whose letters are not looked up."""
CLS, SEP, MASK, SPECIAL = 2, 3, 4, 5
WIDTH, HEADS, LAYERS, INNER, POSITIONS, EPSILON = 512, 8, 8, 2048, 512, 1e-12

SEEDS = (
    # trastuzumab, heavy and light
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTA"
    "VYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYT"
    "TPPTFGQGTKVEIK",
    # adalimumab, heavy and light
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTA"
    "VYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNR"
    "APYTFGQGTKVEIK",
)
SHARE, ROUNDS = 0.15, 8


class Layer(nn.Module):
    """One block: attention, then two dense layers, each with its residual and norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.attended, self.attended_norm = nn.Linear(WIDTH, WIDTH), norm()
        self.inner, self.outer, self.outer_norm = (
            nn.Linear(WIDTH, INNER),
            nn.Linear(INNER, WIDTH),
            norm(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> the same."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.attended_norm(x + self.attended(mixed))
        normed: Tensor = self.outer_norm(x + self.outer(F.gelu(self.inner(x))))
        return normed


class AntiBERTy(nn.Module):
    """Tokens (B, T) of one length -> logits (B, T, 25) of a residue at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), WIDTH)
        self.positions, self.types = nn.Embedding(POSITIONS, WIDTH), nn.Embedding(2, WIDTH)
        self.norm = norm()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.transform, self.transform_norm = nn.Linear(WIDTH, WIDTH), norm()
        self.bias = nn.Parameter(torch.zeros(len(VOCABULARY)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(place) + self.types(tokens * 0))
        for layer in self.layers:
            x = layer(x)
        x = self.transform_norm(F.gelu(self.transform(x)))
        return F.linear(x, self.words.weight, self.bias)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, eps=EPSILON)


def load(wheel: Path) -> AntiBERTy:
    """The trained model of a wheel of antiberty 0.1.3."""
    with zipfile.ZipFile(wheel) as archive:
        data = io.BytesIO(archive.read(WEIGHTS))
    state = torch.load(data, map_location="cpu", weights_only=True)  # noqa: TID251 restricted
    model = AntiBERTy()
    model.load_state_dict({name: state[renamed(name)] for name in model.state_dict()})
    return model.eval()


def renamed(name: str) -> str:
    """The name in the file of a parameter of `AntiBERTy`."""
    top = {
        "words.": "bert.embeddings.word_embeddings.",
        "positions.": "bert.embeddings.position_embeddings.",
        "types.": "bert.embeddings.token_type_embeddings.",
        "norm.": "bert.embeddings.LayerNorm.",
        "transform.": "cls.predictions.transform.dense.",
        "transform_norm.": "cls.predictions.transform.LayerNorm.",
        "bias": "cls.predictions.bias",
    }
    inside = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attended": "attention.output.dense",
        "attended_norm": "attention.output.LayerNorm",
        "inner": "intermediate.dense",
        "outer": "output.dense",
        "outer_norm": "output.LayerNorm",
    }
    if name.startswith("layers."):
        _, index, part, kind = name.split(".")
        return f"bert.encoder.layer.{index}.{inside[part]}.{kind}"
    start = next(prefix for prefix in top if name.startswith(prefix))
    return top[start] + name.removeprefix(start)


def sequences(model: AntiBERTy, count: int, *, seed: int) -> list[Tensor]:
    """`count` sequences drawn from each of `SEEDS`: a tensor (count, length) of tokens each."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for text in SEEDS:
        letters = [VOCABULARY.index(letter, SPECIAL) for letter in text]
        tokens = torch.tensor([CLS, *letters, SEP]).repeat(count, 1)
        for _ in range(ROUNDS):
            masked, where = mask(tokens, generator)
            with torch.no_grad():
                logits = torch.cat([model(part) for part in masked.split(32)])[where]
            logits[:, :SPECIAL] = -torch.inf
            tokens[where] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        drawn.append(tokens)
    return drawn


def mask(tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`tokens` with a share of the residues masked, and where (bool, the same shape)."""
    where = (torch.rand(tokens.shape, generator=generator) < SHARE) & (tokens >= SPECIAL)
    return tokens.masked_fill(where, MASK), where

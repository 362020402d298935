"""Who has said what is tested, each text once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A text that claims are taken from.

    Parameters
    ----------
    short
        What tables call it.
    authors, title, venue, url
        The citation.
    """

    short: str
    authors: str
    title: str
    venue: str
    url: str

    def __str__(self) -> str:
        return f"{self.authors}: {self.title}. {self.venue}, {self.url}"


FREQUENCY_ENTROPY = Source(
    "Oka and others, Frequency Entropy",
    "Oka, Hanafusa, Hasegawa, Nishida (岡 佑依, 花房 健太郎, 長谷川 拓, 西田 京介)",
    "周波数エントロピーによる位置埋込みの解明 (Probing Rotary Position Embeddings through Frequency Entropy)",
    "submission to ICLR 2026",
    "https://openreview.net/forum?id=1JZuEDq62N",
)
ROUND_AND_ROUND = Source(
    "Barbero and others, Round and Round",
    "Federico Barbero, Alex Vitvitskyi, Christos Perivolaropoulos, Razvan Pascanu, Petar Veličković",
    "Round and Round We Go! What makes Rotary Positional Encodings useful?",
    "ICLR 2025",
    "https://arxiv.org/abs/2410.06205",
)
FREQUENCY_BANDS = Source(
    "Oka and others, Frequency Bands",
    "Yui Oka, Itsumi Saito, Kyosuke Nishida, Kuniko Saito",
    "Frequency Bands in RoPE: Base Frequency and Context Length Shape the Interpolation-Extrapolation Trade-off",
    "ICLR 2026",
    "https://openreview.net/forum?id=PR1PPxvG9Q",
)
OFFSET_FEATURES = Source(
    "Jonasson, Offset Features",
    "André Jonasson",
    "Rotary Offset Features in Large Language Models",
    "arXiv 2503.01832, 2025",
    "https://arxiv.org/abs/2503.01832",
)
FREQUENCY_AWARE = Source(
    "Wang and others, FASA",
    "Yifei Wang, Yueqi Wang, Zhenrui Yue, Huimin Zeng, Yong Wang, Ismini Lourentzou, Zhengzhong Tu, Xiangxiang Chu, "
    "Julian McAuley",
    "FASA: Frequency-aware Sparse Attention",
    "ICLR 2026",
    "https://arxiv.org/abs/2602.03152",
)
MASSIVE_VALUES = Source(
    "Jin and others, Massive Values",
    "Mingyu Jin, Kai Mei, Wujiang Xu, Mingjie Sun, Ruixiang Tang, Mengnan Du, Zirui Liu, Yongfeng Zhang",
    "Massive Values in Self-Attention Modules are the Key to Contextual Knowledge Understanding",
    "ICML 2025, PMLR 267",
    "https://proceedings.mlr.press/v267/jin25f.html",
)

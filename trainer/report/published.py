"""Published figures, each with its source; tables show them in columns of their own.

What was recalled, or read in other people's summaries alone, is not here.
"""

from typing import NamedTuple

HYBRID_PAPER = "Sinha, Song, Ermon: Hybrid MI lower-bound estimators, Table 1"
DIM_PAPER = "Hjelm et al., arXiv 1808.06670"
DDIM_PAPER = "Song et al., arXiv 2010.02502, Table 1"

CIFAR10, CIFAR100, STL10 = "CIFAR-10", "CIFAR-100", "STL-10"


class Published(NamedTuple):
    """A row as published: the digits are the paper's; figures by the name of their measure."""

    method: str
    figures: dict[str, str]


def _rows(measures: list[str], rows: dict[str, str]) -> list[Published]:
    """Rows of figures in the order of measures, separated by blanks; `-` for one that is not printed."""
    return [
        Published(
            method,
            {m: f.replace("±", " ± ") for m, f in zip(measures, line.split(), strict=True) if f != "-"},
        )
        for method, line in rows.items()
    ]


# Squared error an image, FID, accuracy in %. The columns were put in order from a scrambled copy.
TABLE_1 = {
    CIFAR10: _rows(
        ["error", "fid", "accuracy"],
        {
            "Hybrid": "2.6 34.6 77.6",
            "MoCo-v2": "- - 78.3",
            "NVAE": "0.25 36.4 18.8",
            "DDIM": "2.5 3.2 22.5",
            "BigGAN": "- 18.6 70.8",
        },
    ),
    CIFAR100: _rows(
        ["error", "fid", "accuracy"],
        {
            "Hybrid": "3.3 41.2 46.7",
            "MoCo-v2": "- - 49.04",
            "NVAE": "0.53 42.5 4.1",
            "DDIM": "3.2 13.3 2.2",
            "BigGAN": "- 22.2 43.3",
        },
    ),
}

# Accuracy in % of an MLP of 200 units on conv, fc and y.
DIM_CLASSIFICATION = {
    CIFAR10: _rows(
        ["mlp/conv", "mlp/fc", "mlp/y"],
        {
            "supervised": "75.39 - -",
            "VAE": "60.71 60.54 54.61",
            "AAE": "59.44 57.19 52.81",
            "BiGAN": "62.57 62.74 52.54",
            "NAT": "56.19 51.29 31.16",
            "DIM(G)": "52.2 52.84 43.17",
            "DIM(L) JSD": "73.25 73.62 66.96",
            "DIM(L) InfoNCE": "75.21 75.57 69.13",
            "DIM(L) InfoNCE, coordinates": "77.28 73.89 71.56",
            "DIM(L) InfoNCE, occlusion": "76.77 74.45 72.87",
            "DIM(L) InfoNCE, coordinates, occlusion": "77.27 75.15 73.99",
        },
    ),
    CIFAR100: _rows(
        ["mlp/conv", "mlp/fc", "mlp/y"],
        {
            "supervised": "42.27 - -",
            "VAE": "37.21 34.05 24.22",
            "AAE": "36.22 33.38 23.25",
            "BiGAN": "37.59 33.34 21.49",
            "NAT": "29.18 24.57 9.72",
            "DIM(G)": "27.68 24.35 19.98",
            "DIM(L) JSD": "48.13 45.92 39.60",
            "DIM(L) InfoNCE": "49.74 47.72 41.61",
            "DIM(L) InfoNCE, coordinates": "50.27 48.61 45.37",
            "DIM(L) InfoNCE, occlusion": "48.87 47.65 44.89",
            "DIM(L) InfoNCE, coordinates, occlusion": "48.72 48.00 45.96",
        },
    ),
    STL10: _rows(
        ["mlp/conv", "mlp/fc", "mlp/y"],
        {
            "supervised": "68.7 - -",
            "VAE": "58.27 56.72 46.47",
            "AAE": "59.54 54.47 43.89",
            "BiGAN": "71.53 67.18 58.48",
            "NAT": "64.32 61.43 48.84",
            "DIM(G)": "42.03 30.82 28.09",
            "DIM(L) JSD": "72.86 70.85 65.93",
            "DIM(L) InfoNCE": "72.57 70.00 67.08",
        },
    ),
}

# Accuracy in % of a linear SVM on conv, fc and y.
DIM_SVM = {
    CIFAR10: _rows(
        ["svm/conv", "svm/fc", "svm/y"],
        {
            "VAE": "53.83±0.62 42.14±3.69 39.59±0.01",
            "AAE": "55.22±0.06 43.34±1.10 37.76±0.18",
            "BiGAN": "56.40±1.12 38.42±6.86 44.90±0.13",
            "NAT": "48.62±0.02 42.63±3.69 39.59±0.01",
            "DIM(G)": "46.8±2.29 28.79±7.29 29.08±0.24",
            "DIM(L+G)": "57.55±1.44 45.56±4.18 18.63±4.79",
            "DIM(L)": "63.25±0.86 54.06±3.6 49.62±0.3",
        },
    ),
}

# FID of samples of the same network, eta = 0, by steps.
DDIM_SAMPLES = {
    CIFAR10: _rows(
        ["fid"],
        {
            "DDIM, 10 steps": "13.36",
            "DDIM, 20 steps": "6.84",
            "DDIM, 50 steps": "4.67",
            "DDIM, 100 steps": "4.16",
            "DDIM, 1,000 steps": "4.04",
        },
    ),
}

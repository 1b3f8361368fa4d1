"""Phase-change memory: programmed for inference, with drift and 1/f noise, or trained by one-sided pulses."""

from __future__ import annotations

from devices.cell import MemoryCell
from devices.drift import PCMDrift
from devices.exponential_step import ExponentialPulses
from devices.hermes import HermesDrift, HermesReadNoise
from devices.micro_noise import MicrosiemensProgrammingNoise
from devices.programming import PolynomialProgrammingNoise
from devices.read_noise import PCMReadNoise


def pcm() -> MemoryCell:
    """Phase-change memory, 0 to 25 uS: programming noise, drift and 1/f read noise; no pulses.

    Source: Nandakumar et al., ICECS 2019; the values as public simulators (aihwkit) state them. Programming sigma
    = 0.26348 + 1.9650 g - 1.1731 g^2 uS with g = G / 25 uS; drift and read noise: see PCMDrift and PCMReadNoise. t = 0
    is the first measurement, 20 s after programming.
    """
    return MemoryCell(
        0.0,
        25e-6,
        programming=PolynomialProgrammingNoise((0.26348e-6, 1.9650e-6, -1.1731e-6)),
        drift=PCMDrift(t0_seconds=20.0),
        read_noise=PCMReadNoise(t0_seconds=20.0, t_read_seconds=250e-9),
        source="Nandakumar et al., ICECS 2019",
    )


def pcm_hermes() -> MemoryCell:
    """Phase-change memory of the Hermes chip, 0 to 10.35 uS, one device per weight; no pulses.

    Source: Le Gallo et al., Nat. Electron. 6:680 (2023); the values as aihwkit states them. Programming sigma =
    0.1578 + 2.3244 g - 2.1631 g^2 + 0.6884 g^3 uS with g = G / 10.35 uS; drift and read noise: see HermesDrift and
    HermesReadNoise. t = 0 is the first measurement, 200 s after programming. Read time 512 ns.
    """
    return MemoryCell(
        0.0,
        10.35e-6,
        programming=PolynomialProgrammingNoise((0.1578e-6, 2.3244e-6, -2.1631e-6, 0.6884e-6)),
        drift=HermesDrift(),
        read_noise=HermesReadNoise(),
        source="Le Gallo et al., Nat. Electron. 6:680 (2023), values from aihwkit",
    )


def pcm_joshi() -> MemoryCell:
    """Phase-change memory, 0.25 to 25 uS: programming noise only.

    Source: Joshi et al., Nat. Commun. 11:2473 (2020), as CrossSim states it: sigma = 0.28638599 + 0.07585724 G -
    0.00178767 G^2 uS, G in uS, on/off ratio 100. Drift and read noise are not part of the fit.
    """
    return MemoryCell(
        0.25e-6,
        25e-6,
        programming=MicrosiemensProgrammingNoise((0.28638599, 0.07585724, -0.00178767), 0.0, 25.0),
        source="Joshi et al., Nat. Commun. 11:2473 (2020), values from CrossSim",
    )


def pcm_training(g_min_siemens: float = 0.0, g_max_siemens: float = 25e-6) -> MemoryCell:
    """Phase-change memory trained by pulses, which only crystallise it: one-sided, steps that shrink on the way.

    Source: fit to Nandakumar et al., Front. Neurosci. 14:406 (2020), as published with aihwkit (PCMPresetDevice),
    in weights w = 0..2: a pulse moves by 0.01 (1 + 27.235 e^(-2.5 w)), 0.28235 at 0, 0.032356 at 1, 0.011835 at 2,
    72 pulses in all; noise 0.6 (move + 0.042 + 0.108 w); spreads 0.2 (step), 0.05 (asymmetry). In the form used here:
    steps = 2 / 0.01 = 200; z = -w = -(u + 1), so slope and offset are -1; noise in shares of the window, c2c_add
    0.042 / 2 = 0.021, c2c_slope 0.108. A lower conductance takes a reset by program(): use OneSidedPair.

    Normalised: the window is a choice, that of the inference cells by default. Not modelled: the spread of the upper
    bound (10 %), the residue of a reset (0.01, spread 0.02), drift; combine with PCMDrift for that.
    """
    return MemoryCell(
        g_min_siemens,
        g_max_siemens,
        pulses=ExponentialPulses(
            steps=200,
            one_sided=True,
            sigma_dtod=0.2,
            sigma_c2c=0.6,
            sigma_asymmetry=0.05,
            a_up=-27.235,
            gamma_up=2.5,
            slope=-1.0,
            offset=-1.0,
            c2c_add=0.021,
            c2c_slope=0.108,
        ),
        source="fit to Nandakumar et al., Front. Neurosci. 14:406 (2020), values from aihwkit; window chosen",
    )


PRESETS = (pcm, pcm_hermes, pcm_joshi, pcm_training)

"""The official folder of SeACo-Paraformer with made weights: config.yaml, model.pt, am.mvn, tokens.json.

In the small net each 60 ms of sound are a fifth of a token, so that one is said every 0.3 s; which one, the random
rest decides from the sound.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml

CONFIG: dict[str, Any] = {
    "model": "SeacoParaformer",
    "model_conf": {
        "ctc_weight": 0.0, "lsm_weight": 0.1, "length_normalized_loss": True, "predictor_weight": 1.0,
        "predictor_bias": 1, "sampling_ratio": 0.75, "inner_dim": 512, "bias_encoder_type": "lstm",
        "bias_encoder_bid": False, "seaco_lsm_weight": 0.1, "seaco_length_normal": True, "train_decoder": False,
        "NO_BIAS": 8377,
    },
    "encoder": "SANMEncoder",
    "encoder_conf": {
        "output_size": 512, "attention_heads": 4, "linear_units": 2048, "num_blocks": 50, "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1, "attention_dropout_rate": 0.1, "input_layer": "pe",
        "pos_enc_class": "SinusoidalPositionEncoder", "normalize_before": True, "kernel_size": 11, "sanm_shfit": 0,
        "selfattention_layer_type": "sanm",
    },
    "decoder": "ParaformerSANMDecoder",
    "decoder_conf": {
        "attention_heads": 4, "linear_units": 2048, "num_blocks": 16, "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1, "self_attention_dropout_rate": 0.1, "src_attention_dropout_rate": 0.1,
        "att_layer_num": 16, "kernel_size": 11, "sanm_shfit": 0,
    },
    "seaco_decoder": "ParaformerSANMDecoder",
    "seaco_decoder_conf": {
        "attention_heads": 4, "linear_units": 1024, "num_blocks": 4, "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1, "self_attention_dropout_rate": 0.1, "src_attention_dropout_rate": 0.1,
        "kernel_size": 21, "sanm_shfit": 0, "use_output_layer": False, "wo_input_layer": True,
    },
    "predictor": "CifPredictorV3",
    "predictor_conf": {
        "idim": 512, "threshold": 1.0, "l_order": 1, "r_order": 1, "tail_threshold": 0.45, "smooth_factor2": 0.25,
        "noise_threshold2": 0.01, "upsample_times": 3, "use_cif1_cnn": False, "upsample_type": "cnn_blstm",
    },
    "frontend": "WavFrontend",
    "frontend_conf": {
        "fs": 16_000, "window": "hamming", "n_mels": 80, "frame_length": 25, "frame_shift": 10, "lfr_m": 7, "lfr_n": 6,
    },
    "specaug": "SpecAugLFR",
    "specaug_conf": {"apply_time_warp": False, "lfr_rate": 6},
    "tokenizer": "CharTokenizer",
    "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
    "ctc_conf": {"dropout_rate": 0.0, "ctc_type": "builtin"},
    "normalize": None,
}  # fmt: skip
"""The published configuration, its training left out."""
VOCABULARY, INPUTS = 8404, 560
SPECIAL = ["<blank>", "<s>", "</s>"]
TEXT = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
LATIN = ["hel@@", "lo", "world", "a", "i"]
PER_TOKEN = 5
"""Steps of 60 ms that are one token."""


def make(folder: Path, true_size: bool = False) -> None:
    """Small or of the official 247 million numbers, random but for the rate at which the small one speaks."""
    from funasr.models.seaco_paraformer.model import SeacoParaformer

    config = CONFIG if true_size else small()
    tokens = _tokens(true_size)
    options = {key: value for key, value in config.items() if key not in ("model", "model_conf", "specaug")}
    with torch.random.fork_rng():
        torch.manual_seed(8404)
        model = SeacoParaformer(**options, **config["model_conf"], vocab_size=len(tokens), input_size=INPUTS)
    if not true_size:
        _steady(model)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "tokens.json").write_text(json.dumps(tokens, ensure_ascii=False))
    (folder / "am.mvn").write_text(norms(INPUTS))


def small() -> dict[str, Any]:
    narrow = {"output_size": 32, "attention_heads": 2, "linear_units": 32, "num_blocks": 2}
    decoder = {"attention_heads": 2, "linear_units": 32, "num_blocks": 1, "att_layer_num": 1}
    return CONFIG | {
        "model_conf": CONFIG["model_conf"] | {"inner_dim": 32},
        "encoder_conf": CONFIG["encoder_conf"] | narrow,
        "decoder_conf": CONFIG["decoder_conf"] | decoder,
        "seaco_decoder_conf": CONFIG["seaco_decoder_conf"]
        | {"attention_heads": 2, "linear_units": 32, "num_blocks": 1},
        "predictor_conf": CONFIG["predictor_conf"] | {"idim": 32},
    }


def norms(width: int) -> str:
    """Kaldi's table of shifts and scales, those of log energies in speech."""
    rows = {"AddShift": " ".join(["-9.0"] * width), "Rescale": " ".join(["0.2"] * width)}
    body = "\n".join(f"<{kind}> {width} {width} \n<LearnRateCoef> 0 [ {row} ]" for kind, row in rows.items())
    return f"<Nnet> \n<Splice> {width} {width} \n[ 0 ]\n{body}\n</Nnet> \n"


def _tokens(true_size: bool) -> list[str]:
    said = [*TEXT, *LATIN]
    fill = [f"#{at}" for at in range(VOCABULARY - len(SPECIAL) - len(said) - 1)] if true_size else []
    return [*SPECIAL, *said, *fill, "<unk>"]


@torch.no_grad()
def _steady(model: Any) -> None:
    """A token every PER_TOKEN steps whatever is heard, none of them special, each chosen with some certainty."""
    for linear in (model.predictor.cif_output, model.predictor.cif_output2):
        linear.weight.zero_()
        linear.bias.fill_(-math.log(PER_TOKEN - 1))
    model.decoder.output_layer.weight.mul_(8.0)
    model.decoder.output_layer.bias[: len(SPECIAL)] = -100.0
    model.decoder.output_layer.bias[-1] = -100.0

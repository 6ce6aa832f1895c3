"""Networks of sounds, series and texts: torchaudio, speechbrain, pytorch-forecasting, neuralforecast, open_clip,
sentence-transformers and x-transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Built = tuple[Any, ...]

# -- torchaudio


def audio(name: str, inputs: Callable[[], Any], **options: Any) -> Callable[[], Built]:
    return lambda: (getattr(importlib.import_module("torchaudio.models"), name)(**options), inputs())


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values)


WAV2VEC = {
    "extractor_mode": "group_norm", "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2)],
    "extractor_conv_bias": False, "encoder_embed_dim": 32, "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 4, "encoder_num_layers": 2, "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.1, "encoder_ff_interm_features": 48, "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1, "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0, "aux_num_out": 12,
}  # fmt: skip


def tacotron() -> tuple[Any, ...]:
    return (torch.randint(0, 20, (2, 7)), lengths(7, 7), torch.randn(2, 16, 9), lengths(9, 9))


TORCHAUDIO = {
    "Conformer": audio("Conformer", lambda: (torch.randn(2, 12, 16), lengths(12, 12)), input_dim=16, num_heads=2,
                       ffn_dim=24, num_layers=2, depthwise_conv_kernel_size=3),
    "ConvTasNet": audio("ConvTasNet", lambda: torch.randn(2, 1, 200), enc_num_feats=16, msk_num_feats=8,
                        msk_num_hidden_feats=16, msk_num_layers=2, msk_num_stacks=2),
    "DeepSpeech": audio("DeepSpeech", lambda: torch.randn(2, 1, 10, 16), n_feature=16, n_hidden=24, n_class=9),
    "Wav2Letter": audio("Wav2Letter", lambda: torch.randn(2, 16, 60), num_classes=9, input_type="mfcc",
                        num_features=16),
    "wav2vec2_model": audio("wav2vec2_model", lambda: torch.randn(2, 400), **WAV2VEC),
    "Emformer": audio("Emformer", lambda: (torch.randn(2, 12, 16), lengths(10, 10)), input_dim=16, num_heads=2,
                      ffn_dim=24, num_layers=2, segment_length=4, right_context_length=2),
    "HDemucs": audio("HDemucs", lambda: torch.randn(1, 2, 8192), sources=["voice", "rest"], channels=8, nfft=1024,
                     depth=5),
    "Tacotron2": audio("Tacotron2", tacotron, mask_padding=False, n_mels=16, n_symbol=20, n_frames_per_step=1,
                       symbol_embedding_dim=16, encoder_embedding_dim=16, encoder_n_convolution=2,
                       attention_rnn_dim=16, attention_hidden_dim=8, decoder_rnn_dim=16, prenet_dim=8,
                       postnet_embedding_dim=16, postnet_n_convolution=2),
    "WaveRNN": audio("WaveRNN", lambda: (torch.randn(2, 1, (11 - 5 + 1) * 4), torch.randn(2, 1, 16, 11)),
                     upsample_scales=[2, 2], n_classes=9, hop_length=4, n_res_block=2, n_rnn=16, n_fc=16, n_freq=16,
                     n_hidden=16, n_output=16),
    "SquimObjective": audio("squim_objective_base", lambda: torch.randn(1, 1600)),
}  # fmt: skip

# -- speechbrain


def brain(module: str, name: str, inputs: Callable[[], Any], **options: Any) -> Callable[[], Built]:
    return lambda: (getattr(importlib.import_module(f"speechbrain.{module}"), name)(**options), inputs())


def frames(width: int = 16, length: int = 30) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, length, width)


SPEECHBRAIN = {
    "ECAPA_TDNN": brain("lobes.models.ECAPA_TDNN", "ECAPA_TDNN", frames(), input_size=16, lin_neurons=12,
                        channels=[16, 16, 16, 16, 48], kernel_sizes=[5, 3, 3, 3, 1], dilations=[1, 2, 3, 4, 1],
                        attention_channels=8, res2net_scale=4, se_channels=8),
    "Xvector": brain("lobes.models.Xvector", "Xvector", frames(), in_channels=16, tdnn_blocks=3,
                     tdnn_channels=[16, 16, 24], tdnn_kernel_sizes=[5, 3, 1], tdnn_dilations=[1, 2, 1],
                     lin_neurons=12),
    "CRDNN": brain("lobes.models.CRDNN", "CRDNN", frames(), input_shape=[None, None, 16], cnn_channels=(8, 8),
                   rnn_layers=1, rnn_neurons=12, dnn_blocks=1, dnn_neurons=16),
    "ContextNet": brain("lobes.models.ContextNet", "ContextNet", frames(), input_shape=[None, None, 16],
                        out_channels=12,
                        conv_channels=[16, 16], kernel_size=3, strides=[1, 2], num_blocks=2, num_layers=2),
    "ResNet": brain("lobes.models.ResNet", "ResNet", frames(16, 40), input_size=16, channels=[8, 8, 16, 16],
                    block_sizes=[1, 1, 1, 1], strides=[1, 2, 2, 2], lin_neurons=12),
    "ConvTasNet-mask": brain("lobes.models.conv_tasnet", "MaskNet", lambda: torch.randn(2, 16, 40), N=16, B=8, H=16,
                             P=3, X=2, R=2, C=2),
    "SepFormer": brain("lobes.models.dual_path", "SepformerWrapper", lambda: torch.randn(2, 400),
                       encoder_out_nchannels=16,
                       masknet_chunksize=10, masknet_numlayers=1, intra_numlayers=1, inter_numlayers=1, intra_nhead=2,
                       inter_nhead=2, intra_dffn=24, inter_dffn=24),
    "VanillaNN": brain("lobes.models.VanillaNN", "VanillaNN", frames(), input_shape=[None, None, 16], dnn_blocks=2,
                       dnn_neurons=24),
    "Cnn14": brain("lobes.models.Cnn14", "Cnn14", lambda: torch.rand(1, 64, 64), mel_bins=64, emb_dim=64),
    "HifiganGenerator": brain("lobes.models.HifiGAN", "HifiganGenerator", lambda: torch.randn(1, 16, 12),
                              in_channels=16,
                              out_channels=1, resblock_type="1", resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
                              resblock_kernel_sizes=[3, 7], upsample_kernel_sizes=[4, 4], upsample_initial_channel=32,
                              upsample_factors=[2, 2]),
    "DiffWave": brain("lobes.models.DiffWave", "DiffWave",
                      lambda: (torch.randn(1, 1, 256), torch.tensor([3]), torch.randn(1, 80, 1)), input_channels=80,
                      residual_layers=2, residual_channels=8, dilation_cycle_length=2, total_steps=20),
    "Conformer": brain("lobes.models.transformer.Conformer", "ConformerEncoder",
                       lambda: {"src": torch.randn(2, 12, 16), "pos_embs": torch.randn(1, 23, 16)}, num_layers=2,
                       d_model=16, d_ffn=24, nhead=2, kernel_size=3),
    "Branchformer": brain("lobes.models.transformer.Branchformer", "BranchformerEncoder",
                          lambda: {"src": torch.randn(2, 12, 16), "pos_embs": torch.randn(1, 23, 16)}, num_layers=2,
                          d_model=16, nhead=2, kernel_size=3, csgu_linear_units=24),
    "TransformerASR": brain("lobes.models.transformer.TransformerASR", "TransformerASR",
                            lambda: {"src": torch.randn(2, 12, 16), "tgt": torch.randint(1, 9, (2, 5)),
                                     "wav_len": torch.ones(2)},
                            tgt_vocab=12, input_size=16, d_model=16, nhead=2, num_encoder_layers=1,
                            num_decoder_layers=1, d_ffn=24),
    "TransformerLM": brain("lobes.models.transformer.TransformerLM", "TransformerLM",
                           lambda: torch.randint(1, 12, (2, 8)), vocab=12, d_model=16, nhead=2, num_encoder_layers=2,
                           d_ffn=24),
    "RNNLM": brain("lobes.models.RNNLM", "RNNLM", lambda: torch.randint(0, 12, (2, 6)), output_neurons=12,
                   embedding_dim=8, rnn_layers=1, rnn_neurons=12, dnn_neurons=16, return_hidden=False),
}  # fmt: skip

# -- pytorch-forecasting


def forecast(name: str, *, known: bool = True, relative: bool = False, **options: Any) -> Callable[[], Built]:
    """A model of pytorch-forecasting from a small table of two series."""

    def build() -> Built:
        library = importlib.import_module("pytorch_forecasting")
        pandas = importlib.import_module("pandas")
        numpy = importlib.import_module("numpy")
        rows = [(s, t, float(numpy.sin(t / 3 + s)), str(t % 3)) for s in range(2) for t in range(30)]
        table = pandas.DataFrame(rows, columns=["series", "time", "value", "kind"])
        table["series"] = table["series"].astype(str)
        extra: dict[str, Any] = {}
        if known:
            extra = {"static_categoricals": ["series"], "time_varying_known_categoricals": ["kind"],
                     "time_varying_known_reals": ["time"]}  # fmt: skip
        data = library.TimeSeriesDataSet(
            table, time_idx="time", target="value", group_ids=["series"], max_encoder_length=10,
            min_encoder_length=10, max_prediction_length=4, time_varying_unknown_reals=["value"],
            add_relative_time_idx=relative, target_normalizer=None, **extra,
        )  # fmt: skip
        batch, _ = next(iter(data.to_dataloader(train=False, batch_size=4)))
        models = importlib.import_module("pytorch_forecasting.models")
        kind = getattr(library, name, None) or getattr(models, name)
        return kind.from_dataset(data, **options), (batch,)

    return build


FORECASTING = {
    "TemporalFusionTransformer": forecast("TemporalFusionTransformer", relative=True, hidden_size=16,
                                          attention_head_size=2,
                                          hidden_continuous_size=8, lstm_layers=1),
    "NBeats": forecast("NBeats", known=False, widths=[16, 24], backcast_loss_ratio=0.1, num_blocks=[1, 1]),
    "NBeatsKAN": forecast("NBeatsKAN", known=False, widths=[16, 24], num_blocks=[1, 1]),
    "NHiTS": forecast("NHiTS", hidden_size=24),
    "DecoderMLP": forecast("DecoderMLP", hidden_size=24),
    "RecurrentNetwork": forecast("RecurrentNetwork", known=False, hidden_size=12, rnn_layers=1),
    "TiDEModel": forecast("TiDEModel", hidden_size=16, temporal_decoder_hidden=8, temporal_width_future=3),
    "xLSTMTime": forecast("xLSTMTime", known=False, input_size=1, hidden_size=12, output_size=1),
}  # fmt: skip

# -- neuralforecast


def neural(name: str, *, series: int = 1, refused: str = "", **options: Any) -> Callable[[], Built]:
    """A model of neuralforecast: sixteen steps in, four out."""

    def build() -> Built:
        kind = getattr(importlib.import_module("neuralforecast.models"), name)
        if series > 1:
            options["n_series"] = series
        made = kind(h=4, input_size=16, max_steps=1, **options)
        windows = {"insample_y": torch.randn(3, 16, series), "insample_mask": torch.ones(3, 16, series),
                   "futr_exog": None, "hist_exog": None, "stat_exog": None}  # fmt: skip
        return made, (windows,), {"refused": refused}

    return build


NEURAL = {
    "MLP": neural("MLP", hidden_size=16, num_layers=2),
    "NHITS": neural("NHITS", mlp_units=3 * [[24, 24]]),
    "NBEATS": neural("NBEATS", mlp_units=3 * [[24, 24]]),
    "NBEATSx": neural("NBEATSx", mlp_units=3 * [[24, 24]]),
    "DLinear": neural("DLinear", refused="linear_trend.weight[0]: an output of the model"),
    "NLinear": neural("NLinear", refused="linear.weight[0]: an output of the model"),
    "TFT": neural("TFT", hidden_size=16, n_head=2),
    "PatchTST": neural("PatchTST", hidden_size=16, linear_hidden_size=24, n_heads=2, encoder_layers=2, patch_len=4,
                       stride=2),
    "VanillaTransformer": neural("VanillaTransformer", hidden_size=16, n_head=2, conv_hidden_size=12),
    "Informer": neural("Informer", hidden_size=16, n_head=2, conv_hidden_size=12),
    "Autoformer": neural("Autoformer", hidden_size=16, n_head=2, conv_hidden_size=12),
    "FEDformer": neural("FEDformer", hidden_size=16, n_head=8, conv_hidden_size=12, modes=4),
    "TimesNet": neural("TimesNet", hidden_size=16, conv_hidden_size=12, top_k=2, num_kernels=2),
    "TCN": neural("TCN", encoder_hidden_size=12, decoder_hidden_size=12, context_size=6),
    "BiTCN": neural("BiTCN", hidden_size=12),
    "DilatedRNN": neural("DilatedRNN", encoder_hidden_size=12, decoder_hidden_size=12, context_size=6),
    "GRU": neural("GRU", encoder_hidden_size=12, decoder_hidden_size=12, encoder_n_layers=1),
    "TiDE": neural("TiDE", hidden_size=16, layernorm=False, decoder_output_dim=8, temporal_decoder_dim=8),
    "KAN": neural("KAN", hidden_size=12, grid_size=3),
    "DeepNPTS": neural("DeepNPTS", hidden_size=16, n_layers=2),
    "iTransformer": neural("iTransformer", series=5, hidden_size=16, n_heads=2, e_layers=1, d_ff=24),
    "TSMixer": neural("TSMixer", series=5, n_block=1, ff_dim=12),
    "TimeMixer": neural("TimeMixer", series=5, d_model=8, d_ff=12, e_layers=1, down_sampling_layers=1),
    "SOFTS": neural("SOFTS", series=5, hidden_size=16, d_core=8, e_layers=1, d_ff=24),
    "StemGNN": neural("StemGNN", series=5, n_stacks=2, multi_layer=2),
    "TimeXer": neural("TimeXer", series=5, patch_len=4, hidden_size=16, n_heads=2, e_layers=1, d_ff=24),
}  # fmt: skip

# -- open_clip


VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
WORDS = {"context_length": 12, "vocab_size": 96, "width": 64, "heads": 4, "layers": 2}


def clip(name: str, vision: Mapping[str, Any], text: Mapping[str, Any], **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        library = importlib.import_module("open_clip")
        kind = getattr(importlib.import_module("open_clip.model"), name, None) or getattr(library, name)
        made = kind(embed_dim=32, vision_cfg=dict(vision), text_cfg=dict(text), **options)
        return made, (torch.randn(2, 3, 32, 32), torch.randint(1, 95, (2, text["context_length"])))

    return build


OPEN_CLIP = {
    "CLIP-vit": clip("CLIP", VISION, WORDS),
    "CLIP-resnet": clip("CLIP", {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}, WORDS),
    "CLIP-timm": clip("CLIP", {"image_size": 32, "timm_model_name": "resnet18", "timm_pool": "avg",
                               "timm_proj": "linear"}, WORDS),
    "CustomTextCLIP": clip("CustomTextCLIP", VISION, {**WORDS, "pool_type": "last", "no_causal_mask": True},
                           init_logit_bias=-10.0),
    "CoCa": clip("CoCa", {**VISION, "output_tokens": True},
                 {**WORDS, "embed_cls": True, "output_tokens": True},
                 multimodal_cfg={"context_length": 12, "vocab_size": 96, "width": 64, "heads": 4, "layers": 1,
                                 "attn_pooler_heads": 4}),
}  # fmt: skip

# -- sentence-transformers


def bert(kind: str = "bert", **more: Any) -> Any:
    transformers = importlib.import_module("transformers")
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.2, **more,
    )  # fmt: skip
    return transformers.AutoModel.from_config(config)


def sentences(pooling: str, *, dense: bool = False, normalize: bool = False) -> Callable[[], Built]:
    """A sentence encoder of its modules; the words are given as token ids."""

    def build() -> Built:
        library = importlib.import_module("sentence_transformers")
        modules = importlib.import_module("sentence_transformers.models")
        words = Words(bert())
        parts: list[nn.Module] = [words, modules.Pooling(32, pooling_mode=pooling)]
        if dense:
            parts.append(modules.Dense(32, 24))
        if normalize:
            parts.append(modules.Normalize())
        made = library.SentenceTransformer(modules=parts, device="cpu")
        features = {"input_ids": torch.randint(1, 96, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
        return made, (features,), {}

    return build


class Words(nn.Module):
    """The transformer module of sentence-transformers reads its files; this one takes a model as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.auto_model = model

    def forward(self, features: dict[str, torch.Tensor], **more: Any) -> dict[str, torch.Tensor]:
        found = self.auto_model(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        return {**features, "token_embeddings": found.last_hidden_state}

    def get_word_embedding_dimension(self) -> int:
        return 32


SENTENCES = {
    "mean": sentences("mean"),
    "cls-dense": sentences("cls", dense=True),
    "max-normalized": sentences("max", normalize=True),
    "weightedmean-dense": sentences("weightedmean", dense=True),
}

# -- x-transformers


def x_words(**layers: Any) -> Callable[[], Built]:
    def build() -> Built:
        library = importlib.import_module("x_transformers")
        decoder = library.Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, **layers)
        return library.TransformerWrapper(num_tokens=40, max_seq_len=32, attn_layers=decoder), torch.randint(
            0, 40, (2, 9)
        )

    return build


X_TRANSFORMERS = {
    "decoder": x_words(),
    "rotary-swiglu": x_words(rotary_pos_emb=True, ff_swish=True, ff_glu=True, ff_no_bias=True),
    "alibi-rmsnorm": x_words(alibi_pos_bias=True, use_rmsnorm=True),
    "grouped-queries": x_words(attn_kv_heads=1, attn_qk_norm=True),
    "macaron-scale": x_words(macaron=True, use_scalenorm=True),
    "talking-heads": x_words(attn_pre_talking_heads=True, attn_post_talking_heads=True),
    "t5-bias": x_words(rel_pos_bias=True, attn_gate_values=True),
}

MODELS: Mapping[str, Mapping[str, Callable[[], Built]]] = {
    "torchaudio": TORCHAUDIO,
    "speechbrain": SPEECHBRAIN,
    "pytorch_forecasting": FORECASTING,
    "neuralforecast": NEURAL,
    "open_clip": OPEN_CLIP,
    "sentence_transformers": SENTENCES,
    "x_transformers": X_TRANSFORMERS,
}

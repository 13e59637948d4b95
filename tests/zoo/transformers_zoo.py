"""Tiny networks of transformers, one for each of some eighty architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
# Grouped products need rows of a multiple of 16 bytes.
ALIGNED = {**DECODER, "intermediate_size": 48, "num_experts_per_tok": 2}
EXPERTS = {**ALIGNED, "moe_intermediate_size": 16, "num_experts": 4}
PAIR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 8),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
}
PYRAMID = {
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [1, 1, 1, 1],
}
TEXT_TOWER = {**SMALL, "projection_dim": 16}
VISION_TOWER = {**VISION, "projection_dim": 16}


def tokens() -> dict[str, torch.Tensor]:
    ids = torch.arange(14).reshape(2, 7) % 30 + 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded() -> dict[str, torch.Tensor]:
    inputs = tokens()
    inputs["attention_mask"][1, 5:] = 0
    return inputs


def pair() -> dict[str, torch.Tensor]:
    return {**tokens(), "decoder_input_ids": torch.arange(10).reshape(2, 5) + 3}


def image(size: int = 32, channels: int = 3) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, channels, size, size)}


def speech() -> dict[str, torch.Tensor]:
    return {"input_values": torch.zeros(1, 800)}


def both(size: int = 32) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {**tokens(), "pixel_values": torch.randn(2, 3, size, size)}


# Architecture: class of the network, its configuration, and the inputs.
ZOO: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Any]]]] = {
    # Encoders of text.
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**SMALL, "embedding_size": 16}, padded),
    "bert": ("BertForMaskedLM", "BertConfig", SMALL, padded),
    "bert decoder": ("BertLMHeadModel", "BertConfig", {**SMALL, "is_decoder": True}, tokens),
    "big_bird": ("BigBirdForMaskedLM", "BigBirdConfig",
                 {**SMALL, "attention_type": "original_full"}, tokens),
    "camembert": ("CamembertForMaskedLM", "CamembertConfig", SMALL, padded),
    "canine": ("CanineForSequenceClassification", "CanineConfig",
               {**SMALL, "num_hash_buckets": 16, "local_transformer_stride": 8}, tokens),
    "convbert": ("ConvBertForMaskedLM", "ConvBertConfig", {**SMALL, "embedding_size": 32}, tokens),
    "deberta": ("DebertaForMaskedLM", "DebertaConfig",
                {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, padded),
    "deberta_v2": ("DebertaV2ForMaskedLM", "DebertaV2Config",
                   {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, padded),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig",
                   {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "vocab_size": 99},
                   padded),
    "electra": ("ElectraForPreTraining", "ElectraConfig", {**SMALL, "embedding_size": 16}, padded),
    "ernie": ("ErnieForMaskedLM", "ErnieConfig", SMALL, padded),
    "esm": ("EsmForMaskedLM", "EsmConfig",
            {**SMALL, "position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 2},
            padded),
    "fnet": ("FNetForMaskedLM", "FNetConfig", SMALL,
             lambda: {"input_ids": tokens()["input_ids"]}),
    "funnel": ("FunnelForMaskedLM", "FunnelConfig",
               {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 37, "block_sizes": [1, 1],
                "vocab_size": 99, "num_decoder_layers": 1}, tokens),
    "ibert": ("IBertForMaskedLM", "IBertConfig", {**SMALL, "quant_mode": False}, padded),
    "layoutlm": ("LayoutLMForMaskedLM", "LayoutLMConfig", SMALL, padded),
    "longformer": ("LongformerForMaskedLM", "LongformerConfig",
                   {**SMALL, "attention_window": 4}, tokens),
    "megatron": ("MegatronBertForMaskedLM", "MegatronBertConfig", SMALL, padded),
    "mobilebert": ("MobileBertForMaskedLM", "MobileBertConfig",
                   {**SMALL, "embedding_size": 32, "true_hidden_size": 32,
                    "intra_bottleneck_size": 32}, padded),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", {**SMALL, "pad_token_id": 0},
                   padded),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", SMALL, padded),
    "rembert": ("RemBertForMaskedLM", "RemBertConfig",
                {**SMALL, "input_embedding_size": 16, "output_embedding_size": 16}, padded),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", SMALL, padded),
    "roformer": ("RoFormerForMaskedLM", "RoFormerConfig", {**SMALL, "embedding_size": 32}, padded),
    "squeezebert": ("SqueezeBertForMaskedLM", "SqueezeBertConfig",
                    {**SMALL, "embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2,
                     "post_attention_groups": 2, "intermediate_groups": 1, "output_groups": 1},
                    padded),
    "xlm_roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", SMALL, padded),
    "xlnet": ("XLNetLMHeadModel", "XLNetConfig",
              {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 37, "vocab_size": 99}, tokens),
    # Decoders of text.
    "bloom": ("BloomForCausalLM", "BloomConfig",
              {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}, padded),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig",
                {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 99,
                 "n_positions": 64}, tokens),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config",
                    {**DECODER, "moe_intermediate_size": 16, "n_routed_experts": 4,
                     "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
                     "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
                     "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "head_dim": 4, "v_head_dim": 8,
                     "num_key_value_heads": 4}, tokens),
    "falcon": ("FalconForCausalLM", "FalconConfig", SMALL, tokens),
    "falcon_mamba": ("FalconMambaForCausalLM", "FalconMambaConfig",
                     {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99,
                      "state_size": 8}, lambda: {"input_ids": tokens()["input_ids"]}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", DECODER, tokens),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", DECODER, tokens),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", DECODER, tokens),
    "glm": ("GlmForCausalLM", "GlmConfig", DECODER, tokens),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64},
             padded),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig",
                    {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}, tokens),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig",
                {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 99,
                 "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
                tokens),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL, tokens),
    "gptj": ("GPTJForCausalLM", "GPTJConfig",
             {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 99,
              "n_positions": 64}, tokens),
    "granite": ("GraniteForCausalLM", "GraniteConfig", DECODER, tokens),
    "jamba": ("JambaForCausalLM", "JambaConfig",
              {**DECODER, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
               "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2,
               "use_mamba_kernels": False, "mamba_d_state": 8, "intermediate_size": 48}, tokens),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, padded),
    "mamba": ("MambaForCausalLM", "MambaConfig",
              {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99, "state_size": 8},
              lambda: {"input_ids": tokens()["input_ids"]}),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config",
               {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99, "state_size": 8,
                "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
               lambda: {"input_ids": tokens()["input_ids"]}),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER, tokens),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig",
                {**ALIGNED, "num_local_experts": 4}, tokens),
    "mpt": ("MptForCausalLM", "MptConfig",
            {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 99}, tokens),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", DECODER, tokens),
    "opt": ("OPTForCausalLM", "OPTConfig",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 37,
             "vocab_size": 99, "max_position_embeddings": 64, "word_embed_proj_dim": 32}, padded),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**DECODER, "eos_token_id": 2}, tokens),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER, tokens),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER, tokens),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS, tokens),
    "rwkv": ("RwkvForCausalLM", "RwkvConfig",
             {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99, "context_length": 64},
             lambda: {"input_ids": tokens()["input_ids"]}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", DECODER, tokens),
    # Encoders and decoders.
    "bart": ("BartForConditionalGeneration", "BartConfig", PAIR, pair),
    "led": ("LEDForConditionalGeneration", "LEDConfig",
            {**PAIR, "attention_window": [4, 4], "max_encoder_position_embeddings": 64,
             "max_decoder_position_embeddings": 64}, pair),
    "m2m_100": ("M2M100ForConditionalGeneration", "M2M100Config", PAIR, pair),
    "marian": ("MarianMTModel", "MarianConfig", PAIR, pair),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", PAIR, pair),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, pair),
    "umt5": ("UMT5ForConditionalGeneration", "UMT5Config", T5, pair),
    # Images.
    "beit": ("BeitForImageClassification", "BeitConfig", VISION, image()),
    "bit": ("BitForImageClassification", "BitConfig",
            {"hidden_sizes": [16, 24], "depths": [1, 1], "embedding_size": 16, "num_groups": 4},
            image()),
    "conditional_detr": ("ConditionalDetrForObjectDetection", "ConditionalDetrConfig",
                         {**PAIR, "num_queries": 5}, image(64)),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", PYRAMID, image(64)),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", PYRAMID, image(64)),
    "data2vec_vision": ("Data2VecVisionForImageClassification", "Data2VecVisionConfig", VISION,
                        image()),
    "deit": ("DeiTForImageClassification", "DeiTConfig", VISION, image()),
    "detr": ("DetrForObjectDetection", "DetrConfig", {**PAIR, "num_queries": 5}, image(64)),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", VISION, image()),
    "dpt": ("DPTForDepthEstimation", "DPTConfig",
            {**VISION, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
             "neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16, "is_hybrid": False},
            image()),
    "glpn": ("GLPNForDepthEstimation", "GLPNConfig",
             {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16,
              "num_attention_heads": [1, 2, 4, 8]}, image(64)),
    "levit": ("LevitForImageClassification", "LevitConfig",
              {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
               "depths": [1, 1, 1], "key_dim": [8, 8, 8]}, image(64)),
    "mobilevit": ("MobileViTForImageClassification", "MobileViTConfig",
                  {"image_size": 64, "hidden_sizes": [16, 24, 32],
                   "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_attention_heads": 4},
                  image(64)),
    "perceiver": ("PerceiverForImageClassificationLearned", "PerceiverConfig",
                  {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_blocks": 1,
                   "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
                   "num_cross_attention_heads": 1, "image_size": 32},
                  lambda: {"inputs": torch.randn(2, 3, 32, 32)}),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormerConfig", PYRAMID, image(64)),
    "pvt": ("PvtForImageClassification", "PvtConfig",
            {"image_size": 64, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1],
             "num_attention_heads": [1, 2, 4, 5]}, image(64)),
    "regnet": ("RegNetForImageClassification", "RegNetConfig",
               {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1],
                "groups_width": 8}, image(64)),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig",
                  {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1],
                   "decoder_hidden_size": 16, "num_attention_heads": [1, 2, 4, 8]}, image(64)),
    "swin": ("SwinForImageClassification", "SwinConfig",
             {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2],
              "num_heads": [2, 4], "window_size": 4}, image()),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config",
               {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2],
                "num_heads": [2, 4], "window_size": 4}, image()),
    "upernet": ("UperNetForSemanticSegmentation", "UperNetConfig",
                {"hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 32,
                 "pool_scales": [1, 2], "use_auxiliary_head": True}, image(64)),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION, image()),
    "vit_mae": ("ViTMAEForPreTraining", "ViTMAEConfig",
                {**VISION, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
                 "decoder_num_attention_heads": 2, "decoder_intermediate_size": 20}, image()),
    "yolos": ("YolosForObjectDetection", "YolosConfig",
              {**VISION, "image_size": [32, 32], "num_detection_tokens": 3}, image()),
    # Sound.
    "data2vec_audio": ("Data2VecAudioForCTC", "Data2VecAudioConfig", SPEECH, speech),
    "hubert": ("HubertForCTC", "HubertConfig", SPEECH, speech),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, speech),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig",
                {**PAIR, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
                lambda: {"input_features": torch.zeros(1, 8, 40),
                         "decoder_input_ids": torch.arange(5)[None] + 3}),
    # Text and images.
    "clip": ("CLIPModel", "CLIPConfig",
             {"text_config": TEXT_TOWER, "vision_config": VISION_TOWER, "projection_dim": 16},
             both()),
    "siglip": ("SiglipModel", "SiglipConfig",
               {"text_config": {**SMALL, "projection_size": 32}, "vision_config": VISION}, both()),
    "blip": ("BlipModel", "BlipConfig",
             {"text_config": {**TEXT_TOWER, "encoder_hidden_size": 32},
              "vision_config": VISION_TOWER, "projection_dim": 16}, both()),
    "vilt": ("ViltModel", "ViltConfig", {**SMALL, **VISION},
             lambda: {**tokens(), "pixel_values": torch.zeros(2, 3, 32, 32)}),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network of the zoo in evaluation mode, and inputs for it."""
    import transformers

    model, config, options, inputs = ZOO[name]
    if name == "upernet":
        backbone = transformers.ConvNextConfig(
            **PYRAMID, out_features=["stage1", "stage2", "stage3", "stage4"]
        )
        options = {**options, "backbone_config": backbone}
    if name in ("detr", "conditional_detr"):
        backbone = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            out_features=["stage4"],
        )
        options = {**options, "backbone_config": backbone}
    network = getattr(transformers, model)(getattr(transformers, config)(**options))
    return network.eval(), inputs()

"""Llama shapes with random weights, drawn where they are used, a layer at a time.

No weight comes from a file, and of a model in four bits no more than one weight exists in 16: a
linear layer is made on the meta device, its weight drawn on the GPU, packed there, and dropped.
"""

import torch
from torch import nn

# hidden, intermediate, heads, key-value heads, layers, vocabulary
SHAPES = {
    "tiny": (64, 160, 4, 2, 2, 512),
    "llama-3-8b": (4096, 14336, 32, 8, 32, 128256),
    "llama-3-70b": (8192, 28672, 64, 8, 80, 128256),
}


def config_of(shape):
    from transformers import LlamaConfig

    hidden, intermediate, heads, kv_heads, layers, vocab = SHAPES[shape]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=vocab,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def drawn_model(shape, *, dtype, device, pack=None):
    """A Llama with random weights, frozen.

    Args:
        shape: a key of `SHAPES`.
        dtype: of what is not packed.
        device: where everything is drawn and stays.
        pack: makes the layer that replaces a linear one, of its weight in `dtype`; None keeps it.
    """
    from transformers import LlamaForCausalLM

    config = config_of(shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    generator = torch.Generator(device).manual_seed(0)

    def draw(size):
        return torch.empty(size, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)

    head = model.get_output_embeddings()
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name, linear in linears:
        weight = draw(linear.weight.shape)
        if pack is None or linear is head:
            linear.weight = nn.Parameter(weight, requires_grad=False)
        else:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, pack(weight))
        del weight
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                is_norm = parameter.ndim == 1
                value = (
                    torch.ones_like(parameter, device=device) if is_norm else draw(parameter.shape)
                )
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    # What a constructor computes is lost on the meta device.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.requires_grad_(False).eval()


def ince_pack(dtype):
    """`pack` for ince's NF4 with double quantization."""
    from ince.quant import Linear4bit, NF4Config

    config = NF4Config(compute_dtype=str(dtype).removeprefix("torch."))
    return lambda weight: Linear4bit.from_weight(weight, config=config)


def bitsandbytes_pack(dtype, device):
    """`pack` for bitsandbytes' NF4 with double quantization."""
    import bitsandbytes as bnb  # noqa: TID251

    def pack(weight):
        out_features, in_features = weight.shape
        layer = bnb.nn.Linear4bit(
            in_features,
            out_features,
            bias=False,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        # It packs a weight on its way from the processor's memory to the device.
        layer.weight = bnb.nn.Params4bit(
            weight.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to(device)
        return layer

    return pack

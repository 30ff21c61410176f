"""`Trainer`: that of transformers for an ince model, with checkpoints that hold the adapter alone.

transformers' own trains an ince model too, but it knows adapters by PEFT's class: of every other
model it writes all weights into each checkpoint, and where embeddings are tied it cannot write
them at all. What it says of saving and loading is therefore said again here. `AdapterTrainerMixin`
says it to any trainer that is built on transformers', such as those of TRL:

    class SFTTrainer(ince.AdapterTrainerMixin, trl.SFTTrainer): ...

Trainers look closely at what they are given: whether it is a `PreTrainedModel`, what its forward
takes, how its class is called. So they are made with the base, whose layers are adapted in place,
and get the model with its adapters for everything that comes after.

It is not the loop of `ince train`, which resumes from a kill at any moment and packs, plans and
proves; it is for programs that are there already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import transformers
from torch import nn

from ince.errors import AdapterError, InputError
from ince.files import write_json
from ince.lora import PeftModel
from ince.lora.layers.adapted import adapted_modules
from ince.lora.peft_model.saving import has_lost_start

__all__ = ["AdapterTrainerMixin", "Trainer"]

if TYPE_CHECKING:
    _Base = transformers.Trainer
else:
    _Base = object


class AdapterTrainerMixin(_Base):
    """Before a trainer among the bases of a class: it trains, saves and resumes adapters.

    A checkpoint holds the adapters in PEFT's format, as `PeftModel.from_pretrained` loads them,
    beside the trainer's own optimizer and state. `resume_from_checkpoint` and
    `load_best_model_at_end` take back the adapters that are trained; what else has gradients in
    the model is refused at the start, as no checkpoint would hold it.

    Args:
        model: with adapters on it.
        *args: of the trainer.
        **kwargs: of the trainer.

    Attributes:
        model: the one that was given.

    Raises:
        InputError: no ince model was given, or the base trains beside the adapters.
        AdapterError: nothing in it takes gradients; or the best adapter shall come back, and its
            files do not say all of it.
    """

    def __init__(self, model: Any = None, *args: Any, **kwargs: Any) -> None:
        _refuse(model, kwargs)
        base = model.get_base_model()
        with _known_to_train(base):
            super().__init__(base, *args, **kwargs)
        self._set_signature_columns_if_needed()
        if self.args.load_best_model_at_end:
            _check_comes_back(model)
        held = cast(Any, self)
        if self.label_smoother is not None and _predicts_next(base):
            # Decided by the class of the model at each step, which from now on is the shell's.
            held.label_smoother = partial(self.label_smoother, shift_labels=True)
        held.model = held.model_wrapped = held.callback_handler.model = model

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapters, the tokenizer, and the arguments: as JSON, for a pickle runs code."""
        if not self.args.should_save:
            return
        folder = Path(cast(str, self.args.output_dir if output_dir is None else output_dir))
        cast(PeftModel, self.model).save_pretrained(folder, state_dict=state_dict)
        tokenizer: Any = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_json(folder / "training_args.json", self.args.to_dict())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model  # that of all processes together, whose adapters are these
        _take_back(cast(PeftModel, self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            _take_back(cast(PeftModel, self.model), Path(best))


class Trainer(AdapterTrainerMixin, transformers.Trainer):
    """`transformers.Trainer` for a model with adapters; see `AdapterTrainerMixin`."""


# ------------------------------------------------------------------------------------ at the start


def _refuse(model: object, settings: dict[str, Any]) -> None:
    if settings.get("peft_config") is not None:
        raise InputError(
            "an ince model has its adapters before it is given to a trainer",
            got=f"peft_config={type(settings['peft_config']).__name__}(…)",
            do="call ince.get_peft_model(model, config), and leave peft_config out",
        )
    if not isinstance(model, PeftModel):
        got = "model_init" if model is None and "model_init" in settings else type(model).__name__
        raise InputError(
            "this trainer is for models with adapters",
            got=got,
            expected="what ince.get_peft_model or PeftModel.from_pretrained returned",
            do="for a model without adapters use transformers' own",
        )
    adapters = {id(p) for name in model.peft_config for p in _parameters(model, name)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise AdapterError(
            "no adapter takes gradients: there is nothing to train",
            got=", ".join(model.peft_config) or "no adapter",
            do="load with is_trainable=True, or call model.set_requires_grad(adapter)",
        )
    surplus = [name for name, p in trained.items() if id(p) not in adapters]
    if surplus:
        raise InputError(
            "weights of the base take gradients, and checkpoints hold adapters alone",
            got=f"{len(surplus)} tensors, such as {surplus[0]}",
            do="freeze them, or name their modules in the config's modules_to_save",
        )


def _parameters(model: PeftModel, adapter_name: str) -> list[nn.Parameter]:
    return [
        tensor
        for _, adapted in adapted_modules(model.get_base_model())
        for tensor in adapted.tensors(adapter_name).values()
        if isinstance(tensor, nn.Parameter)
    ]


def _trained_adapters(model: PeftModel) -> list[str]:
    return [
        name
        for name in model.peft_config
        if any(parameter.requires_grad for parameter in _parameters(model, name))
    ]


def _check_comes_back(model: PeftModel) -> None:
    base = model.get_base_model()
    for name in _trained_adapters(model):
        config = model.peft_config[name]
        if has_lost_start(base, name, config):
            raise AdapterError(
                "the adapter has a start that its file cannot tell, so that a checkpoint holds it "
                "in plain form, of twice the rank: it cannot be taken back into this model",
                where=name,
                got=f"init_lora_weights={getattr(config, 'init_lora_weights', None)!r}",
                do="do without resuming and load_best_model_at_end: PeftModel.from_pretrained puts "
                "a checkpoint on the base; or begin with init_lora_weights=True",
            )


@contextmanager
def _known_to_train(base: Any) -> Iterator[None]:
    """Inside, transformers knows that adapters are on this base, which may be quantized."""
    base._hf_peft_config_loaded = True
    try:
        yield
    finally:
        del base._hf_peft_config_loaded


def _predicts_next(base: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


# --------------------------------------------------------------------------------- adapters return


def _take_back(model: PeftModel, folder: Path) -> None:
    """The adapters that are trained get the weights that a checkpoint has of them, in place."""
    _check_comes_back(model)
    is_training = model.training
    takes_gradients = [(p, p.requires_grad) for p in model.parameters()]
    for name in _trained_adapters(model):
        where = folder if name == "default" else folder / name
        model.load_adapter(where, name, is_trainable=True)
    for parameter, before in takes_gradients:  # an adapter may be trained in part
        parameter.requires_grad_(before)
    model.train(is_training)

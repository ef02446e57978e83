"""C. Tables and kernels of another size choose the model's size, patch and window; nothing is resampled unasked."""

from __future__ import annotations

from typing import Any

from tests.checkpoint import layouts

from .place import PVT, SWIN, VIT, Place, made, noise, situation

BASE: dict[str, Any] = {"model": "vit_base_patch16_224", "model_kwargs": VIT}


@situation("C", "patches of 8")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, patch_size=8, img_size=64, num_classes=3)
    place.same(place.save(model.state_dict()), model, noise(64), **BASE)


@situation("C", "384 px in a file for an architecture of 224")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, img_size=384, num_classes=3)
    place.same(place.save(model.state_dict()), model, noise(384), **BASE)


@situation("C", "Swin with windows of 12 at 384 px, original names")
def _(place: Place) -> None:
    model = made("swin_tiny_patch4_window7_224", SWIN, window_size=12, img_size=384, num_classes=3)
    path = place.save({"model": layouts.swin(model.state_dict(), 64, 12)})
    place.same(path, model, noise(384), model="swin_tiny_patch4_window7_224", model_kwargs=SWIN)


@situation("C", "Swin V2 of another size")
def _(place: Place) -> None:
    model = made("swinv2_tiny_window8_256", SWIN, window_size=6, img_size=192, num_classes=3)
    path = place.save({"model": layouts.swin(model.state_dict(), 64, 6)})
    place.same(path, model, noise(192), model="swinv2_tiny_window8_256", model_kwargs=SWIN)


@situation("C", "BEiT's bias tables of another grid")
def _(place: Place) -> None:
    model = made("beit_base_patch16_224", VIT, img_size=96, num_classes=3)
    path = place.save({"model": model.state_dict()})
    place.same(path, model, noise(96), model="beit_base_patch16_224", model_kwargs=VIT)


@situation("C", "an oblong grid that nobody recorded, and the way out")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, img_size=(64, 192), num_classes=3)
    path = place.save(model.state_dict())
    place.refused(path, "pos_embed", "img_size=", **BASE)
    kwargs = {**VIT, "img_size": (64, 192)}
    place.same(path, model, noise((64, 192)), model="vit_base_patch16_224", model_kwargs=kwargs)


@situation("C", "`--img-size` resamples, and says so")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, num_classes=3)
    loaded = place.load(place.save(model.state_dict()), **BASE, img_size=96).model
    assert loaded(noise(96)).shape == (2, 3)
    place.hears("resampled", "pos_embed")


@situation("C", "12 channels")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, in_chans=12, num_classes=3)
    place.same(place.save(model.state_dict()), model, noise(224, 12), **BASE)


@situation("C", "PVT v2 with one channel and one class")
def _(place: Place) -> None:
    model = made("pvt_v2_b0", PVT, in_chans=1, num_classes=1)
    path = place.save(layouts.pvt_v2(model.state_dict()))
    place.same(path, model, noise(224, 1), model="pvt_v2_b0", model_kwargs=PVT)


@situation("C", "registers, layer scale, no position for the class token")
def _(place: Place) -> None:
    model = made(
        "vit_base_patch16_224", VIT, reg_tokens=4, init_values=0.1, no_embed_class=True, img_size=64, num_classes=3
    )
    place.same(place.save(model.state_dict()), model, noise(64), **BASE)

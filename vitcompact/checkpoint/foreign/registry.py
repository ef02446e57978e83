"""The layouts of other libraries that are read: one line each."""

from __future__ import annotations

from vitcompact.checkpoint.foreign import hf_beit, hf_clip, hf_dinov2, hf_dinov3, hf_swin, hf_timm, hf_vit, open_clip
from vitcompact.checkpoint.foreign.described import Layout

LAYOUTS: tuple[Layout, ...] = (
    *hf_vit.LAYOUTS,
    *hf_dinov2.LAYOUTS,
    *hf_dinov3.LAYOUTS,
    *hf_beit.LAYOUTS,
    *hf_swin.LAYOUTS,
    *hf_clip.LAYOUTS,
    *hf_timm.LAYOUTS,
    *open_clip.LAYOUTS,
)
BY_TYPE = {model_type: layout for layout in LAYOUTS for model_type in layout.model_types}

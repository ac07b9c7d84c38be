"""The Qwen3-VL family (dense): configuration mapping, model and weight map."""

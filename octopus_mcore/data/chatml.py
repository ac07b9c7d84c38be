"""Qwen's ChatML with images, as a Jinja chat template of the Hugging Face kind."""

CHATML_TEMPLATE = r"""{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item.type == 'text' -%}
{{- item.text -}}
{%- else -%}
{{- raise_exception('this chat template renders text and images, not ' + item.type) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}"""
"""Renders text and image items; a generation prompt opens the assistant's turn and nothing else. No system prompt is added."""

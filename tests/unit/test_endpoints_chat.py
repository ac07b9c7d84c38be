"""Chat models over real connections."""

from __future__ import annotations

import base64

import pytest

from octopus_mcore.config.endpoint import ChatEndpointConfig
from octopus_mcore.endpoints.chat import ChatModel, ChatReply, ChatRequest
from octopus_mcore.endpoints.http import EndpointError
from tests.json_server import Answer, chat_answer, serving

PNG, JPEG = b"\x89PNG\r\n\x1a\nx", b"\xff\xd8\xff\xe0y"


def completed(server, requests, **settings) -> list[ChatReply]:
    with ChatModel(ChatEndpointConfig(url=server.url + "/v1/", model="m", **settings)) as model:
        return list(model.complete(requests))


def test_a_text_goes_out_with_its_settings_and_comes_back():
    with serving(lambda body, number: chat_answer("hello", "length")) as server:
        replies = completed(
            server, [ChatRequest("hi <image>", system="be brief", seed=7)], temperature=0.5, top_p=0.9, max_tokens=12
        )
    assert replies == [ChatReply("hello", "length")]
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi <image>"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 12,
            "seed": 7,
        }
    ]


def test_further_fields_add_replace_and_leave_out():
    extra = {
        "max_tokens": None,
        "max_completion_tokens": 5,
        "temperature": 1,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    with serving(lambda body, number: chat_answer("x")) as server:
        completed(server, [ChatRequest("q")], extra_body=extra)
    (body,) = server.bodies
    assert "max_tokens" not in body and "seed" not in body
    assert (body["max_completion_tokens"], body["temperature"]) == (5, 1)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def url(image: bytes, kind: str) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(image).decode()}"}}


@pytest.mark.parametrize(
    ("text", "images", "content"),
    [
        ("what?", (PNG,), [url(PNG, "png"), {"type": "text", "text": "what?"}]),
        ("<image>what?", (JPEG,), [url(JPEG, "jpeg"), {"type": "text", "text": "what?"}]),
        (
            "first <image> then <image>?",
            (PNG, JPEG),
            [
                {"type": "text", "text": "first "},
                url(PNG, "png"),
                {"type": "text", "text": " then "},
                url(JPEG, "jpeg"),
                {"type": "text", "text": "?"},
            ],
        ),
        ("q", (b"RIFF....WEBP", b"GIF89a", b"BMxx"), None),
    ],
)
def test_images_stand_where_their_markers_are(text, images, content):
    with serving(lambda body, number: chat_answer("x")) as server:
        completed(server, [ChatRequest(text, images)])
    found = server.bodies[0]["messages"][0]["content"]
    assert found == (
        content or [url(i, k) for i, k in zip(images, ("webp", "gif", "bmp"), strict=True)] + [{"type": "text", "text": "q"}]
    )


@pytest.mark.parametrize(("text", "images"), [("<image>", (PNG, PNG)), ("<image> <image>", (PNG,))])
def test_markers_and_images_must_agree(text, images):
    with pytest.raises(ValueError, match="markers for"):
        ChatRequest(text, images)


def test_replies_are_in_order_and_a_refused_one_says_why():
    def answer(body, number):
        text = body["messages"][0]["content"]
        return Answer({"error": "content filter"}, 400) if text == "2" else chat_answer(text)

    with serving(answer) as server:
        replies = completed(server, [ChatRequest(str(i)) for i in range(5)], concurrency=3)
    assert [reply.text for reply in replies] == ["0", "1", None, "3", "4"]
    assert "content filter" in replies[2].error


@pytest.mark.parametrize(
    "body",
    [{}, {"choices": []}, {"choices": ["x"]}, {"choices": [{"message": None}]}, [], chat_answer(None), chat_answer([1]), 5],
)
def test_an_answer_of_another_form(body):
    with serving(lambda asked, number: body) as server:
        (reply,) = completed(server, [ChatRequest("q")])
    assert reply.text is None and "expected" in reply.error


def test_an_unknown_model_ends_everything():
    with serving(lambda body, number: Answer({"message": "The model `m` does not exist."}, 404)) as server:
        with pytest.raises(EndpointError, match="does not exist"):
            completed(server, [ChatRequest("q")] * 3)

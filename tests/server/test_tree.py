"""Where a message stands in its conversation, when the server answers with two, and finding a conversation again."""

from collections.abc import Callable

from feedback.schema import Reply
from server.identity import create_key
from tests.server.conftest import ForkedServer, ask, events


def test_a_message_follows_what_its_parent_id_names(forked: Callable[..., ForkedServer]) -> None:
    running = forked().start()
    with running.client("ada") as client, running.client("bob") as other:
        first = ask(client, "My name is Ada")
        place = {"conversation_id": first["conversation_id"]}
        second = ask(client, "What is my name?", **place)

        def stored(reply: dict[str, object]) -> Reply:
            with running.store.read() as session:
                return session.get_one(Reply, reply["id"])

        def questions(reply: dict[str, object]) -> list[str]:
            return [each["content"] for each in stored(reply).messages if each["role"] == "user"]

        assert stored(second).parent_id == first["id"]
        # The first message in other words: at the conversation's beginning, where nothing was said yet.
        anew = ask(client, "My name is Eve", parent_id=first["conversation_id"], **place)
        assert (stored(anew).parent_id, questions(anew)) == (None, ["My name is Eve"])
        assert anew["conversation_id"] == first["conversation_id"]
        # Back to where it was left: after a reply that is not the newest. A reply's id is enough.
        on = ask(client, "And yours?", parent_id=second["id"])
        assert (stored(on).parent_id, on["conversation_id"]) == (second["id"], first["conversation_id"])
        assert questions(on) == ["My name is Ada", "What is my name?", "And yours?"]
        assert [each["content"] for each in stored(on).messages][1] == first["choices"][0]["message"]["content"]
        # Without it, on from the newest.
        assert questions(ask(client, "Thanks", **place)) == [*questions(on), "Thanks"]

        body = {"messages": [{"role": "user", "content": "Hello"}]}

        def refused(**fields: object) -> int:
            return client.post("/v1/chat/completions", json=body | fields).status_code

        assert refused(parent_id="chatcmpl-none", **place) == 404
        assert refused(parent_id=first["id"], conversation_id="conv-another") == 404
        assert refused(parent_id=first["id"], regenerate_of=second["id"], **place) == 400
        assert other.post("/v1/chat/completions", json=body | {"parent_id": first["id"]}).status_code == 404


def test_two_replies_are_offered_at_the_rate_that_is_set(forked: Callable[..., ForkedServer]) -> None:
    always = forked(KUDOS_COMPARISON_RATE="1").start()
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with always.client("ada") as client:

        def chunks(**fields: object) -> list[dict[str, object]]:
            with client.stream("POST", "/v1/chat/completions", json=body | fields) as response:
                return [each for each in events(response) if each != "[DONE]"]

        offered = chunks(may_compare=True)
        assert {each["side"] for each in offered} == {"left", "right"}
        assert not any("system_fingerprint" in each for each in offered), "a policy was named before the choice"
        with always.store.read() as session:
            for reply_id in {str(each["id"]) for each in offered}:
                reply = session.get_one(Reply, reply_id)
                assert (reply.comparison_id, reply.sampling["comparison_rate"]) == (offered[0]["comparison_id"], 1.0)
        choice = client.put(f"/v1/comparisons/{offered[0]['comparison_id']}/choice", json={"choice": "tie"})
        assert choice.status_code == 200
        # Not to a client that did not say it can show two, and not for what a comparison cannot do.
        for fields in ({}, {"may_compare": True, "n": 2}, {"may_compare": True, "logprobs": True}):
            assert not any("side" in each for each in chunks(**fields)), fields
    with always.store.write() as session:
        _, secret = create_key(session, label="reader", scopes=["chat"])
    with always.client(key=secret) as client:
        assert (
            "choices" in client.post("/v1/chat/completions", json=body | {"may_compare": True, "stream": False}).json()
        )

    now_and_then = forked(KUDOS_COMPARISON_RATE="0.5").start()
    place = {"may_compare": True, "conversation_id": "conv-ada", "parent_id": "conv-ada"}
    with now_and_then.client("ada") as client:
        answers = [ask(client, f"Number {n}", **place) for n in range(40)]
        two = [answer["object"] == "comparison" for answer in answers]
        assert 8 < sum(two) < 32
        again = [ask(client, f"Number {n}", **place) for n in range(10)]
        assert [answer["object"] == "comparison" for answer in again] == two[:10], "a repetition is not drawn for again"
    with now_and_then.store.read() as session:
        single = session.get_one(Reply, next(answer["id"] for answer in answers if answer["object"] != "comparison"))
        assert single.sampling["comparison_rate"] == 0.5, "what might have been offered is logged too"


def test_a_conversation_is_found_by_what_was_said_in_it(forked: Callable[..., ForkedServer]) -> None:
    running = forked(FAKE_SAYS="Mugs cost 5 euros, 100% of them.").start()
    with running.client("ada") as client, running.client("bob") as other:
        mugs, zh = ask(client, "Which Mugs?")["conversation_id"], ask(client, "你好，商店")["conversation_id"]
        client.patch(f"/v1/conversations/{zh}", json={"title": "A greeting"})
        ask(other, "Which mugs?")

        def found(words: str) -> list[str]:
            return [each["id"] for each in client.get("/v1/conversations", params={"search": words}).json()["data"]]

        assert found("which mugs") == [mugs]
        assert found("商店") == found("GREETING") == [zh]
        assert set(found("euros")) == set(found(" ")) == {mugs, zh}
        assert found("100%") == found("euros")
        # Neither the log's own words nor what a pattern would mean.
        assert found("role") == found("user") == found("1_0") == found("nothing like it") == []
        assert client.get("/v1/conversations", params={"search": "x" * 201}).status_code == 422
        client.delete(f"/v1/conversations/{mugs}")
        assert found("euros") == [zh]

from __future__ import annotations

import base64
import time

import pytest
from multidict import CIMultiDict

from bot.ingest.refusals import Unproven
from bot.ingest.signatures import Bearer, HexHmac, PlainToken, Scheme, StandardWebhooks, check_body_time
from tests.bot.ingest.senders import SECRET, WHSEC, hexmac, standard

BODY = b'{"a": 1}'
NOW = 1_800_000_000.0


def passes(scheme: Scheme, headers: dict[str, str] | CIMultiDict[str], body: bytes = BODY, now: float = NOW) -> bool:
    given = CIMultiDict(headers)
    try:
        scheme.check_headers(given, now)
        scheme.verify(given, body)
    except Unproven:
        return False
    return True


def test_a_hex_hmac_of_any_of_the_secrets_passes() -> None:
    scheme = HexHmac(["old", SECRET], "X-Sig", "sha256=")
    for secret in ("old", SECRET):
        assert passes(scheme, {"x-sig": "sha256=" + hexmac(secret, BODY)})
    assert passes(scheme, {"x-sig": "sha256=" + hexmac(SECRET, BODY).upper()})


def test_the_example_in_githubs_documentation_passes() -> None:
    # docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation".
    scheme = HexHmac(["It's a Secret to Everybody"], "X-Hub-Signature-256", "sha256=")
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert passes(scheme, {"X-Hub-Signature-256": signature}, b"Hello, World!")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sha256=",
        hexmac(SECRET, BODY),
        "sha1=" + hexmac(SECRET, BODY),
        "sha256=" + hexmac("x", BODY),
        "sha256=" + hexmac(SECRET, BODY)[:-1],
        "sha256=" + hexmac(SECRET, b"other"),
        "sha256=" + "zz" * 32,
        "sha256=\udcff",
    ],
)
def test_any_other_hex_hmac_does_not(value: str) -> None:
    assert not passes(HexHmac([SECRET], "X-Sig", "sha256="), {"x-sig": value})


def test_a_signature_that_is_missing_or_given_twice_does_not_pass() -> None:
    right = "sha256=" + hexmac(SECRET, BODY)
    scheme = HexHmac([SECRET], "X-Sig", "sha256=")
    assert not passes(scheme, {})
    assert not passes(scheme, CIMultiDict([("X-Sig", right), ("X-Sig", right)]))


def test_the_example_of_the_standard_webhooks_specification_passes() -> None:
    # standardwebhooks.com, specification 1.0.0, "Signature scheme"; the reference libraries test with the same one.
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    scheme = StandardWebhooks(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    assert passes(scheme, headers, b'{"test": 2432232314}', 1614265330)


def test_standard_webhooks_may_carry_several_signatures() -> None:
    headers = standard(BODY, at=NOW)
    headers["webhook-signature"] = f"v1,AAAA v2,xx v1a,yy {headers['webhook-signature']} v1,%"
    assert passes(StandardWebhooks([WHSEC]), headers)


@pytest.mark.parametrize("secret", ["bm90IGEgcHJlZml4", "plain text, no base64"])
def test_standard_webhooks_secrets_without_a_prefix_are_base64_or_text(secret: str) -> None:
    encoded = "whsec_" + base64.b64encode(secret.encode()).decode()
    assert passes(StandardWebhooks([secret]), standard(BODY, encoded, at=NOW))
    if " " not in secret:
        assert passes(StandardWebhooks([secret]), standard(BODY, "whsec_" + secret, at=NOW))


@pytest.mark.parametrize("change", ["id", "timestamp", "body", "signature", "missing"])
def test_standard_webhooks_sign_id_timestamp_and_body(change: str) -> None:
    headers, body = standard(BODY, at=NOW), BODY
    if change == "body":
        body += b" "
    elif change == "missing":
        del headers["webhook-signature"]
    else:
        headers[f"webhook-{change}"] = {"id": "other", "timestamp": str(int(NOW) + 1), "signature": "v1,AAAA"}[change]
    assert not passes(StandardWebhooks([WHSEC]), headers, body)


@pytest.mark.parametrize(("late", "taken"), [(0, True), (299, True), (-299, True), (301, False), (-301, False)])
def test_a_signed_timestamp_must_be_near_our_clock(late: int, taken: bool) -> None:
    assert passes(StandardWebhooks([WHSEC]), standard(BODY, at=NOW - late)) is taken


@pytest.mark.parametrize("stamp", ["", "soon", "-5", "1.5", "٣", "9" * 400])
def test_a_timestamp_that_is_no_number_does_not_pass(stamp: str) -> None:
    assert not passes(StandardWebhooks([WHSEC]), standard(BODY, at=NOW) | {"webhook-timestamp": stamp})


def test_plain_and_bearer_tokens_are_compared_whole() -> None:
    plain, bearer = PlainToken(["old", SECRET], "X-Gitlab-Token"), Bearer(["old", "new"])
    assert passes(plain, {"X-Gitlab-Token": SECRET})
    assert passes(plain, {"X-Gitlab-Token": "old"})
    assert passes(bearer, {"Authorization": "Bearer new"})
    for wrong in ("", "ol", "older", "\udcff"):
        assert not passes(plain, {"X-Gitlab-Token": wrong})
        assert not passes(bearer, {"Authorization": f"Bearer {wrong}"})
    assert not passes(plain, {})
    assert not passes(bearer, {})


@pytest.mark.parametrize("stamp", [None, "1800000000000", True, 1e300, 10**400, [], NOW, (NOW - 301) * 1000])
def test_a_time_in_the_body_must_be_milliseconds_near_our_clock(stamp: object) -> None:
    with pytest.raises(Unproven):
        check_body_time({"at": stamp}, "at", NOW)
    with pytest.raises(Unproven):
        check_body_time([stamp], "at", NOW)
    check_body_time({"at": (NOW - 299) * 1000}, "at", NOW)


def test_every_refusal_reads_the_same() -> None:
    scheme = StandardWebhooks([WHSEC])
    messages = set()
    for headers in ({}, standard(BODY, at=0.0), standard(b"other", at=time.time())):
        with pytest.raises(Unproven) as caught:
            scheme.check_headers(CIMultiDict(headers), time.time())
            scheme.verify(CIMultiDict(headers), BODY)
        messages.add((caught.value.message, caught.value.field))
    assert len(messages) == 1

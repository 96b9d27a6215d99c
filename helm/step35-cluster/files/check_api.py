"""What `helm test` runs: ready, 401 without a key, one streamed completion with one. Standard library alone.

Usage: check_api.py URL; API_KEY and API_NEEDS_KEY ("true", "false") in the environment.
"""

import json
import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 120


def main(url: str, key: str, needs_key: bool) -> int:
    """Exit status 1 after the first thing that is wrong."""
    checks = [("ready", lambda: is_ready(url))]
    if needs_key:
        checks.append(("401 without a key", lambda: status_of(url, "") == 401))
    if key or not needs_key:
        checks.append(("a streamed completion", lambda: streams(url, key)))
    else:
        print("skipped: a streamed completion (tests.apiKeySecret is not set)", flush=True)
    for name, check in checks:
        try:
            passed = check()
        except (OSError, ValueError, KeyError, IndexError) as error:
            passed = False
            print(f"  {type(error).__name__}: {error}", flush=True)
        print(f"{'ok' if passed else 'FAILED'}: {name}", flush=True)
        if not passed:
            return 1
    return 0


def is_ready(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/ready", timeout=TIMEOUT_S) as response:
        return response.status == 200


def status_of(url: str, key: str) -> int:
    try:
        with urllib.request.urlopen(asking(f"{url}/v1/models", key), timeout=TIMEOUT_S) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def streams(url: str, key: str) -> bool:
    """Several events, text in them, and the end that the API promises."""
    with urllib.request.urlopen(asking(f"{url}/v1/models", key), timeout=TIMEOUT_S) as response:
        model = json.load(response)["data"][0]["id"]
    message = {"role": "user", "content": "Say hello."}
    body = {"model": model, "messages": [message], "stream": True, "max_tokens": 16}
    request = asking(f"{url}/v1/chat/completions", key, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        lines = [line.decode().strip() for line in response]
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    text = "".join(delta.get("content") or delta.get("reasoning_content") or "" for delta in deltas)
    print(f"  {model}: {text!r}", flush=True)
    return events[-1] == "[DONE]" and bool(text)


def asking(url: str, key: str, body: bytes | None = None) -> urllib.request.Request:
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    return urllib.request.Request(url, data=body, headers=headers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/"), os.environ.get("API_KEY", ""), os.environ.get("API_NEEDS_KEY") != "false"))

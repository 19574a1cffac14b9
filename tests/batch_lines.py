"""Lines of a batch. Shared by the tests of what works on them."""


def line(id, endpoint="/v1/completions", **body):
    return {"custom_id": id, "method": "POST", "url": endpoint, "body": body or {"prompt": "ab", "max_tokens": 2}}


def ids(lines):
    return [each["custom_id"] for each in lines]

"""What a model may write: all that Markdown has, and what would call another server or run a script if it were not made harmless."""

HOSTILE = """![](http://evil.invalid/a.png) <img src="http://evil.invalid/b.png"> <script>fetch('http://evil.invalid/c')</script>
![r][1] <svg><image href='http://evil.invalid/d.png'/></svg> <iframe src=http://evil.invalid/e></iframe> [x](javascript:alert(1))

[1]: http://evil.invalid/f.png

`` ` ``![](http://evil.invalid/g.png)` \\(<img src=http://evil.invalid/h.png>\\) $$<img src=http://evil.invalid/i.png>$$

```mermaid
graph TD; A[<img src='http://evil.invalid/j.png'>]-->B
```

```
``` <img src=http://evil.invalid/k.png>
"""
MARKDOWN = """A **bold** word, $x^2$ for $5.

| planet | km |
|---|---|
| Mercury | 2440 |

```python
print("<b>")
```
"""

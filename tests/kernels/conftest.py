"""Triton's interpreter patches the language at a launch and again for every function that a kernel
calls, where it finds it patched: half of the time. Here it looks first.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function):
        names = [v for v in function.__globals__.values() if v is tl or v is tl.core]
        fresh = any(tl.core.is_builtin(language.load) for language in names)
        return patch(function) if fresh else interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once

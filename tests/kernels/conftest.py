"""Triton's interpreter patches the language at a launch and again for every function that a kernel
calls, where it finds it patched: half of the time. Here it looks first. And it builds the table of
NumPy's dtypes anew for every operation, a tenth of the time: here each is looked up once.
"""

import os
from functools import lru_cache

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function):
        names = [v for v in function.__globals__.values() if v is tl or v is tl.core]
        fresh = any(tl.core.is_builtin(language.load) for language in names)
        return patch(function) if fresh else interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once
    find = interpreter._get_np_dtype
    known = lru_cache(None)(find)

    def numpy_dtype(dtype):
        return (find if dtype.scalar.is_ptr() else known)(dtype.scalar)

    interpreter._get_np_dtype = numpy_dtype

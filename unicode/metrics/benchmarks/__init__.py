"""LLaVA's twelve benchmarks: questions, scores and submission files, exactly as LLaVA's scripts have them; one module each."""

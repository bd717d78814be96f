"""Judge finished runs: tables, tests, pictures, the page. Never imports torch. May import: inference and below."""

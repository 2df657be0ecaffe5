"""How a report looks on the console."""

from unicode.metrics.entry import NotComputed, entry, format_report


def test_table() -> None:
    level = {"level": 0, "rows": 8, "codes": 4, "used": 2, "usage_percent": 25.0, "perplexity": 2.0, "entropy_bits": 1.0, "top1_share": 0.5}
    metrics = {"psnr": entry(24.5, unit="dB", protocol="8 bit"), "rfid": NotComputed("no weights", "put FILE at PATH").to_dict()}
    assert format_report({"metrics": metrics, "codes": {"levels": [level]}}).splitlines() == [
        "psnr            24.5000 dB",
        "rfid         not computed: no weights; put FILE at PATH",
        "codes level 0: 2 of 8 rows used (25.0 %), perplexity 2.0, entropy 1.00 bits, commonest row 50.0 %",
    ]

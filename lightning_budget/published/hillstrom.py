"""Hillstrom's e-mail trial, 2008."""

from __future__ import annotations

from lightning_budget.published.description import Arm, Published, PublishedFile, Rate

NAME = "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv"
CONTROL, MENS, WOMENS = "No E-Mail", "Mens E-Mail", "Womens E-Mail"

HILLSTROM = Published(
    name="hillstrom",
    title="MineThatData e-mail trial: 64,000 customers, three arms, two weeks",
    where=f"blog.minethatdata.com, 20 March 2008; the file is {NAME}",
    licence="none stated by the publisher",
    allows="offered publicly for a challenge; ask before redistributing",
    citation="Kevin Hillstrom, The MineThatData E-Mail Analytics and Data Mining Challenge, 2008",
    files=(
        PublishedFile(NAME, 3_964_977, "0e5893329d8b93cefecc571777672028290ab69865718020c78c7284f291aece"),
        # The same with LF in place of CR LF.
        PublishedFile(NAME, 3_900_976, "27bab8c5d3669f26ec08ebb50a0a78317542f29501156f2e2af6781fab4cd7e2"),
    ),
    rows=64_000,
    columns={
        "recency": "int16",
        "history_segment": "label",
        "history": "double",
        "mens": "flag",
        "womens": "flag",
        "zip_code": "label",
        "newbie": "flag",
        "channel": "label",
        "segment": "label",
        "visit": "flag",
        "conversion": "flag",
        "spend": "double",
    },
    treatment="segment",
    arms=(Arm(CONTROL, 1 / 3, 21_306), Arm(MENS, 1 / 3, 21_307), Arm(WOMENS, 1 / 3, 21_387)),
    rates=(
        Rate("visit", 0.1062, 4, CONTROL),
        Rate("visit", 0.1828, 4, MENS),
        Rate("visit", 0.1514, 4, WOMENS),
        Rate("conversion", 0.00573, 5, CONTROL),
        Rate("conversion", 0.01253, 5, MENS),
        Rate("conversion", 0.00884, 5, WOMENS),
        Rate("spend", 0.6528, 4, CONTROL),
        Rate("spend", 1.4226, 4, MENS),
        Rate("spend", 1.0772, 4, WOMENS),
    ),
    implies=(("conversion", "visit"),),
    note="no cost was recorded: the preset states a contact cost per mail",
)

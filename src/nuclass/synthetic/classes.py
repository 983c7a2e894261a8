"""How each simulated class looks and what it expresses.

These numbers belong to the simulation alone: no stage of the pipeline reads them. The genes are the
real markers of the field, as they stand in public 10x panels, together with the unspecific
expression that makes real labelling hard. They are written apart from ``resources/markers``, so that
the labels are not tested on their own assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """The appearance of a class under H&E. Lengths in micrometres, densities in optical-density units.

    ``axes`` are the semi-axes of the nucleus, ``variation`` the relative spread of its size,
    ``lobes`` the relative height of its outline's harmonics. ``chromatin`` is the mean haematoxylin
    density, ``clumps`` the relative strength of coarse chromatin and ``nucleoli`` their number.
    ``body`` is the radius of the cell, ``eosin`` and ``basophilia`` the stain of its cytoplasm.
    """

    axes: tuple[float, float]
    chromatin: float
    body: float
    eosin: float
    variation: float = 0.07
    lobes: float = 0.05
    clumps: float = 0.15
    nucleoli: int = 0
    basophilia: float = 0.05


_SPINDLE = Look((7.0, 2.1), 1.05, 6.0, 0.42, variation=0.12, clumps=0.12)
_LINING = Look((5.4, 1.8), 1.15, 4.5, 0.40, variation=0.12, clumps=0.10)
_COLUMNAR = Look((4.2, 3.0), 0.95, 5.8, 0.50, variation=0.07, clumps=0.15)

LOOKS: dict[str, Look] = {
    "Fibroblast": _SPINDLE,
    "Tumor_Associated_Fibroblast": _SPINDLE,
    "Endothelial": _LINING,
    "Endothelial_TumorAssociated": _LINING,
    "Ductal": _COLUMNAR,
    "Epithelial_Airway": _COLUMNAR,
    "T_Cell": Look((3.0, 2.8), 1.55, 4.0, 0.25, clumps=0.10, lobes=0.03),
    "B_Cell": Look((3.9, 3.7), 1.00, 4.6, 0.25, clumps=0.55, lobes=0.03, nucleoli=1),
    "Macrophage": Look((4.6, 3.1), 0.72, 7.0, 0.33, clumps=0.20, lobes=0.16),
    "Mast_Cell": Look((3.1, 2.9), 1.30, 7.0, 0.33, clumps=0.45, lobes=0.03),
    "Epithelial_Malignant": Look((5.2, 4.2), 0.88, 6.6, 0.46, variation=0.20, lobes=0.12, clumps=0.40, nucleoli=2),
    "Acinar": Look((3.2, 3.0), 1.00, 6.2, 0.75, clumps=0.2, nucleoli=1, basophilia=0.35),
    "Endocrine": Look((3.5, 3.2), 0.80, 5.4, 0.22, clumps=0.35),
    "Epithelial_Alveolar": Look((3.9, 3.0), 0.90, 4.8, 0.40, clumps=0.2, nucleoli=1, variation=0.1),
    "Smooth_Muscle": Look((8.5, 2.0), 0.90, 6.5, 0.80, variation=0.10),
}

CLASSES = tuple(sorted(LOOKS))

# Pairs and groups that the study turns on; stored with the truth and used only for scoring.
GROUPS: dict[str, list[str]] = {
    "surroundings": [
        "Endothelial",
        "Endothelial_TumorAssociated",
        "Fibroblast",
        "Tumor_Associated_Fibroblast",
    ],
    "nucleus": ["B_Cell", "Macrophage", "Mast_Cell", "T_Cell"],
    "organ": ["Ductal", "Epithelial_Airway"],
}

# Mean transcripts a cell, before noise.
DEPTH: dict[str, float] = {
    "T_Cell": 60,
    "B_Cell": 62,
    "Mast_Cell": 70,
    "Endothelial": 75,
    "Endothelial_TumorAssociated": 75,
    "Epithelial_Malignant": 170,
    "Acinar": 170,
}
DEFAULT_DEPTH = 95.0

_STROMA = ("COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "PDGFRA", "COL5A2", "IGFBP7", "FBN1", "THY1")
_VESSEL = ("PECAM1", "VWF", "CD34", "CLDN5", "EGFL7", "CDH5", "KDR", "RAMP2", "IGFBP7", "SPARCL1")
_EPITHELIUM = ("EPCAM", "KRT8", "KRT18", "KRT19", "CDH1", "CLDN4", "CLDN7", "ELF3")
_IMMUNE = ("PTPRC", "CXCR4", "CORO1A", "CD53", "LAPTM5")
_MYELOID = ("CD68", "AIF1", "TYROBP", "FCER1G", "LYZ")
_MUSCLE = ("ACTA2", "TAGLN", "MYL9")

# Genes of a class with their strength relative to an average marker (1 = clear, 0.4 = weak).
PROFILES: dict[str, dict[str, float]] = {
    "Acinar": dict.fromkeys(("CPA1", "CPB1", "PRSS1", "CTRC", "CELA3A", "AMY2A", "PNLIP", "AQP8", "GATM"), 1.2)
    | dict.fromkeys(_EPITHELIUM, 0.25),
    "B_Cell": dict.fromkeys(("MS4A1", "CD79A", "CD79B", "CD19", "BANK1", "TCL1A", "CD22", "FCRL1", "SPIB"), 1.0)
    | dict.fromkeys(_IMMUNE, 0.8)
    | {"CD74": 0.8, "HLA-DRA": 0.7},
    "Ductal": dict.fromkeys(("CFTR", "SOX9", "SCTR", "TFF2", "MUC6", "AQP1", "SPP1", "HNF1B", "ANXA4"), 0.9)
    | dict.fromkeys(_EPITHELIUM, 0.7),
    "Endocrine": dict.fromkeys(("CHGA", "INS", "GCG", "SST", "SCG2", "SCGN", "PCSK1", "NEUROD1", "ABCC8"), 1.1)
    | {"KRT8": 0.3, "EPCAM": 0.3},
    "Endothelial": dict.fromkeys(_VESSEL, 0.9)
    | dict.fromkeys(("ACKR1", "SELE", "CA4", "SOX17", "GJA5", "FCN3", "MMRN1"), 0.7),
    "Endothelial_TumorAssociated": dict.fromkeys(_VESSEL, 0.8)
    | dict.fromkeys(("ESM1", "ANGPT2", "PLVAP", "APLN", "INSR", "COL4A1", "CXCR4"), 0.9),
    "Epithelial_Airway": dict.fromkeys(
        ("FOXJ1", "SCGB1A1", "SCGB3A1", "TP63", "CAPS", "CCDC78", "RSPH1", "BPIFB1", "DNAH5"), 0.9
    )
    | dict.fromkeys(_EPITHELIUM, 0.7),
    "Epithelial_Alveolar": dict.fromkeys(
        ("SFTPC", "SFTPD", "SFTPA1", "AGER", "LAMP3", "CLDN18", "ABCA3", "PGC", "RTKN2"), 1.0
    )
    | dict.fromkeys(_EPITHELIUM, 0.5),
    "Epithelial_Malignant": dict.fromkeys(
        ("MKI67", "TOP2A", "CENPF", "CD24", "SOX4", "ERBB2", "MYBL2", "RRM2", "TACSTD2", "MET"), 0.8
    )
    | dict.fromkeys(_EPITHELIUM, 1.1),
    "Fibroblast": dict.fromkeys(_STROMA, 0.8)
    | dict.fromkeys(("PI16", "DPT", "CFD", "SFRP2", "GPC3", "MFAP5", "CD34", "ADH1B"), 0.8),
    "Macrophage": dict.fromkeys(("CD163", "MRC1", "C1QA", "C1QC", "CD14", "MS4A7", "MSR1", "FCGR3A", "APOE"), 0.9)
    | dict.fromkeys(_MYELOID, 0.8)
    | {"PTPRC": 0.5, "CD74": 0.9, "HLA-DRA": 0.9, "LAPTM5": 0.7},
    "Mast_Cell": dict.fromkeys(("CPA3", "TPSAB1", "TPSB2", "KIT", "MS4A2", "HPGDS", "GATA2", "HDC", "SLC18A2"), 1.1)
    | {"PTPRC": 0.5, "FCER1G": 0.8, "LAPTM5": 0.6},
    "Smooth_Muscle": dict.fromkeys(("MYH11", "DES", "CNN1", "ACTG2", "SYNPO2", "LMOD1", "SORBS1", "PLN"), 1.0)
    | dict.fromkeys(_MUSCLE, 1.2),
    "T_Cell": dict.fromkeys(("CD3E", "CD3D", "CD2", "TRAC", "IL7R", "CD8A", "CD4", "GZMK", "CCL5", "CD247"), 0.9)
    | dict.fromkeys(_IMMUNE, 0.9),
    "Tumor_Associated_Fibroblast": dict.fromkeys(_STROMA, 0.9)
    | dict.fromkeys(("FAP", "POSTN", "COL11A1", "MMP11", "CTHRC1", "THBS2", "INHBA", "ACTA2", "TAGLN"), 0.7),
}

# Genes that the tumour of an organ expresses besides.
TUMOUR_GENES: dict[str, tuple[str, ...]] = {
    "ovary": ("WFDC2", "PAX8", "MUC16", "MSLN"),
    "lung": ("NAPSA", "NKX2-1", "CEACAM6", "MUC1"),
    "pancreas": ("CEACAM6", "MSLN", "TFF1", "MUC1"),
    "breast": ("GATA3", "ESR1", "KRT7", "SCGB2A1"),
    "colon": ("CDX2", "CEACAM5", "LGR5", "KRT20"),
}

HOUSEKEEPING = (
    "ACTB GAPDH B2M MALAT1 TMSB4X FTL FTH1 EEF1A1 TPT1 UBC RPLP0 HSPA8 HSP90AB1 CALM1 PPIA YWHAZ SERF2 MYL6 PFN1 "
    "CFL1 ENO1 LDHA PGK1 TPI1 ALDOA JUN FOS EGR1 DUSP1 NFKBIA IER2 KLF6 VIM S100A6 LGALS1 CD63 CTSB CTSD NEAT1 SOD2 "
    "STAT1 IRF1 IFITM3 ISG15 MX1 HIF1A VEGFA SLC2A1 BNIP3 MCL1"
).split()

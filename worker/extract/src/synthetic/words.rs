//! Vocabulary of the generated resources. Texts stand here as they appear inside JSON strings.

/// A code of a coding system, with its display.
#[derive(Clone, Copy)]
pub struct Code {
    /// The code.
    pub code: &'static str,
    /// What it means.
    pub display: &'static str,
}

const fn code(code: &'static str, display: &'static str) -> Code {
    Code { code, display }
}

/// Canonical address of SNOMED CT.
pub const SNOMED: &str = "http://snomed.info/sct";
/// Canonical address of LOINC.
pub const LOINC: &str = "http://loinc.org";
/// Canonical address of RxNorm.
pub const RXNORM: &str = "http://www.nlm.nih.gov/research/umls/rxnorm";
/// Canonical address of the vaccine codes.
pub const CVX: &str = "http://hl7.org/fhir/sid/cvx";
/// Canonical address of the codes of services.
pub const HCPCS: &str = "https://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets";
/// Canonical address of the codes of diagnoses in claims.
pub const ICD10: &str = "http://hl7.org/fhir/sid/icd-10-cm";

/// Given names, with whether they are usually a woman's.
#[rustfmt::skip]
pub const GIVEN: [(&str, bool); 32] = [
    ("José", false), ("María", true), ("Zoë", true), ("Søren", false), ("Łukasz", false), ("Анна", true),
    ("美咲", true), ("Siân", true), ("Ngọc", true), ("François", false), ("Jürgen", false), ("Aisha", true),
    ("Olu", false), ("Mei-Ling", true), ("Tomás", false), ("Grace", true), ("Walter", false), ("Ruth", true),
    ("Samuel", false), ("Esther", true), ("Dennis", false), ("Carol", true), ("Victor", false), ("Nora", true),
    ("Peter", false), ("Iris", true), ("Hassan", false), ("Leila", true), ("Arthur", false), ("Joan", true),
    ("Miguel", false), ("Paula", true),
];

/// Family names; some hold characters that need care in JSON.
#[rustfmt::skip]
pub const FAMILY: [&str; 32] = [
    "O'Brien", "Müller", "García", "Nguyễn", "Sørensen", "Kowalski", "Петрова", "田中", "D’Angelo", "Okafor",
    "Smith-Jones", "Åkesson", "Çelik", "Fernández", "van der Berg", "Haddad", "Johnson", "Lee", "Walker",
    "Young", "Hughes", "Price", "Morales", "Reed", "Foster", "Barnes", "Cole", "Hayes", "Ward", "Brooks",
    "Sanders \\\"Sandy\\\"", "Long",
];

/// Cities with state and the first three digits of the postal code.
#[rustfmt::skip]
pub const CITIES: [(&str, &str, &str); 16] = [
    ("Springfield", "MA", "011"), ("Cañon City", "CO", "812"), ("San José", "CA", "951"), ("Toledo", "OH", "436"),
    ("Mayagüez", "PR", "006"), ("Española", "NM", "875"), ("Albany", "NY", "122"), ("Boise", "ID", "837"),
    ("Peoria", "IL", "616"), ("Lihuʻe", "HI", "967"), ("Macon", "GA", "312"), ("Tulsa", "OK", "741"),
    ("Laredo", "TX", "780"), ("Duluth", "MN", "558"), ("Salem", "OR", "973"), ("Bangor", "ME", "044"),
];

/// Streets.
#[rustfmt::skip]
pub const STREETS: [&str; 12] = [
    "Main Street", "Calle del Río", "North 5th Avenue", "Elm Court", "Peña Boulevard", "Station Road",
    "Harbor View Lane", "County Road 12", "Old Mill Way", "Rue Saint-Étienne", "Sunset Drive", "Orchard Close",
];

/// Names of payers.
#[rustfmt::skip]
pub const PAYER_NAMES: [&str; 16] = [
    "Northstar Health Plan", "Blue Harbor Insurance", "Prairie Mutual", "Summit Care Alliance", "Tidewater Health",
    "Evergreen Medicare Advantage", "Riverbend Community Plan", "Lakeshore Benefit Fund", "Northstar Medicaid",
    "Blue Harbor Gold", "Prairie Seniors", "Summit Exchange", "Tidewater Dual", "Evergreen Supplement",
    "Riverbend Kids", "Lakeshore Employers",
];

/// Diagnoses, by SNOMED CT.
#[rustfmt::skip]
pub const PROBLEMS: [Code; 20] = [
    code("38341003", "Hypertensive disorder, systemic arterial (disorder)"),
    code("44054006", "Diabetes mellitus type 2 (disorder)"), code("195967001", "Asthma (disorder)"),
    code("55822004", "Hyperlipidemia (disorder)"), code("13645005", "Chronic obstructive lung disease (disorder)"),
    code("709044004", "Chronic kidney disease (disorder)"), code("49436004", "Atrial fibrillation (disorder)"),
    code("396275006", "Osteoarthritis (disorder)"), code("35489007", "Depressive disorder (disorder)"),
    code("84114007", "Heart failure (disorder)"), code("444814009", "Viral sinusitis (disorder)"),
    code("10509002", "Acute bronchitis (disorder)"), code("195662009", "Acute viral pharyngitis (disorder)"),
    code("162864005", "Body mass index 30+ - obesity (finding)"), code("271737000", "Anemia (disorder)"),
    code("64859006", "Osteoporosis (disorder)"), code("40055000", "Chronic sinusitis (disorder)"),
    code("197480006", "Anxiety disorder (disorder)"), code("278860009", "Chronic low back pain (finding)"),
    code("15777000", "Prediabetes (finding)"),
];

/// Diagnoses of claims, by ICD-10-CM.
#[rustfmt::skip]
pub const DIAGNOSES: [Code; 12] = [
    code("I10", "Essential (primary) hypertension"),
    code("E11.9", "Type 2 diabetes mellitus without complications"), code("E78.5", "Hyperlipidemia, unspecified"),
    code("J45.909", "Unspecified asthma, uncomplicated"), code("M54.50", "Low back pain, unspecified"),
    code("N18.30", "Chronic kidney disease, stage 3 unspecified"), code("I48.91", "Unspecified atrial fibrillation"),
    code("Z00.00", "Encounter for general adult medical examination without abnormal findings"),
    code("F41.1", "Generalized anxiety disorder"), code("J06.9", "Acute upper respiratory infection, unspecified"),
    code("D64.9", "Anemia, unspecified"), code("R73.03", "Prediabetes"),
];

/// What is measured: code, unit, and the least value and its span in hundredths.
#[rustfmt::skip]
pub const MEASURES: [(Code, &str, u64, u64); 16] = [
    (code("8480-6", "Systolic blood pressure"), "mm[Hg]", 9_000, 9_000),
    (code("8462-4", "Diastolic blood pressure"), "mm[Hg]", 5_500, 6_000),
    (code("8867-4", "Heart rate"), "/min", 5_000, 7_000),
    (code("29463-7", "Body weight"), "kg", 4_500, 9_000),
    (code("39156-5", "Body mass index (BMI) [Ratio]"), "kg/m2", 1_700, 2_500),
    (code("2339-0", "Glucose [Mass/volume] in Blood"), "mg/dL", 6_500, 14_000),
    (code("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood"), "%", 450, 700),
    (code("38483-4", "Creatinine [Mass/volume] in Blood"), "mg/dL", 50, 300),
    (code("2093-3", "Cholesterol [Mass/volume] in Serum or Plasma"), "mg/dL", 12_000, 16_000),
    (code("2571-8", "Triglyceride [Mass/volume] in Serum or Plasma"), "mg/dL", 6_000, 30_000),
    (code("718-7", "Hemoglobin [Mass/volume] in Blood"), "g/dL", 900, 900),
    (code("6690-2", "Leukocytes [#/volume] in Blood by Automated count"), "10*3/uL", 350, 900),
    (code("777-3", "Platelets [#/volume] in Blood by Automated count"), "10*3/uL", 14_000, 30_000),
    (code("2947-0", "Sodium [Moles/volume] in Blood"), "mmol/L", 13_000, 1_800),
    (code("6298-4", "Potassium [Moles/volume] in Blood"), "mmol/L", 330, 230),
    (code("33914-3", "Glomerular filtration rate/1.73 sq M.predicted"), "mL/min/{1.73_m2}", 3_000, 9_000),
];

/// Procedures, by SNOMED CT.
#[rustfmt::skip]
pub const PROCEDURES: [Code; 12] = [
    code("430193006", "Medication reconciliation (procedure)"), code("73761001", "Colonoscopy (procedure)"),
    code("399208008", "Plain chest X-ray (procedure)"), code("171207006", "Depression screening (procedure)"),
    code("710824005", "Assessment of health and social care needs (procedure)"),
    code("40701008", "Echocardiography (procedure)"), code("29303009", "Electrocardiographic procedure (procedure)"),
    code("180325003", "Electrical cardioversion (procedure)"), code("274031008", "Rectal polypectomy (procedure)"),
    code("24623002", "Screening mammography (procedure)"), code("265764009", "Renal dialysis (procedure)"),
    code("23426006", "Measurement of respiratory function (procedure)"),
];

/// Services of claims.
#[rustfmt::skip]
pub const SERVICES: [Code; 14] = [
    code("G0438", "Annual wellness visit; includes a personalized prevention plan of service, initial visit"),
    code("G0439", "Annual wellness visit, includes a personalized prevention plan of service, subsequent visit"),
    code("G0444", "Annual depression screening, 5 to 15 minutes"), code("J1885", "Injection, ketorolac tromethamine, per 15 mg"),
    code("A0429", "Ambulance service, basic life support, emergency transport"), code("G0299", "Direct skilled nursing services of a registered nurse"),
    code("E0601", "Continuous positive airway pressure (CPAP) device"), code("G0105", "Colorectal cancer screening; colonoscopy on individual at high risk"),
    code("J3420", "Injection, vitamin B-12 cyanocobalamin, up to 1000 mcg"), code("A4253", "Blood glucose test or reagent strips for home blood glucose monitor, per 50 strips"),
    code("G0008", "Administration of influenza virus vaccine"), code("P9603", "Travel allowance, one way, in connection with medically necessary laboratory specimen collection"),
    code("Q3014", "Telehealth originating site facility fee"), code("L1902", "Ankle orthosis, prefabricated"),
];

/// Active ingredients.
#[rustfmt::skip]
pub const DRUGS: [&str; 25] = [
    "Lisinopril", "Metformin", "Atorvastatin", "Amlodipine", "Omeprazole", "Metoprolol", "Albuterol", "Losartan",
    "Gabapentin", "Hydrochlorothiazide", "Sertraline", "Simvastatin", "Montelukast", "Escitalopram", "Furosemide",
    "Levothyroxine", "Prednisone", "Tamsulosin", "Pantoprazole", "Warfarin", "Apixaban", "Clopidogrel",
    "Amoxicillin", "Ibuprofen", "Insulin glargine",
];

/// Strengths and forms of drugs.
#[rustfmt::skip]
pub const STRENGTHS: [&str; 8] = [
    "2.5 MG Oral Tablet", "5 MG Oral Tablet", "10 MG Oral Tablet", "20 MG Oral Tablet", "50 MG Oral Capsule",
    "100 MG Oral Capsule", "500 MG Extended Release Oral Tablet", "1 MG/ML Injectable Solution",
];

/// Vaccines.
#[rustfmt::skip]
pub const VACCINES: [Code; 8] = [
    code("140", "Influenza, seasonal, injectable, preservative free"), code("113", "Td (adult), preservative free"),
    code("133", "Pneumococcal conjugate PCV 13"), code("121", "zoster vaccine, live"), code("62", "HPV, quadrivalent"),
    code("207", "COVID-19, mRNA, LNP-S, PF, 100 mcg/0.5 mL dose"), code("43", "Hep B, adult"), code("52", "Hep A, adult"),
];

/// Allergies, with their category.
#[rustfmt::skip]
pub const ALLERGIES: [(Code, &str); 8] = [
    (code("91935009", "Allergy to peanut (finding)"), "food"), (code("300913006", "Allergy to shellfish (finding)"), "food"),
    (code("91936005", "Allergy to penicillin (finding)"), "medication"), (code("418689008", "Allergy to grass pollen (finding)"), "environment"),
    (code("232350006", "Allergy to house dust mite (finding)"), "environment"), (code("232347008", "Allergy to dander (animal) (finding)"), "environment"),
    (code("294505008", "Allergy to amoxicillin (finding)"), "medication"), (code("424213003", "Allergy to bee venom (finding)"), "environment"),
];

/// Specialities of practitioners.
#[rustfmt::skip]
pub const SPECIALITIES: [Code; 8] = [
    code("207Q00000X", "Family Medicine Physician"), code("207R00000X", "Internal Medicine Physician"),
    code("208000000X", "Pediatrics Physician"), code("207RC0000X", "Cardiovascular Disease Physician"),
    code("2084P0800X", "Psychiatry Physician"), code("363LF0000X", "Family Nurse Practitioner"),
    code("2085R0202X", "Diagnostic Radiology Physician"), code("183500000X", "Pharmacist"),
];

/// Kinds of visits.
#[rustfmt::skip]
pub const VISITS: [Code; 6] = [
    code("162673000", "General examination of patient (procedure)"), code("185345009", "Encounter for symptom (procedure)"),
    code("50849002", "Emergency room admission (procedure)"), code("390906007", "Follow-up encounter (procedure)"),
    code("308335008", "Patient encounter procedure (procedure)"), code("448337001", "Telemedicine consultation with patient (procedure)"),
];

/// Kinds of notes and reports.
#[rustfmt::skip]
pub const NOTES: [Code; 5] = [
    code("34117-2", "History and physical note"), code("11506-3", "Progress note"), code("18842-5", "Discharge summary"),
    code("51847-2", "Evaluation + Plan note"), code("11488-4", "Consult note"),
];

/// Laboratory reports.
#[rustfmt::skip]
pub const PANELS: [Code; 5] = [
    code("58410-2", "CBC panel - Blood by Automated count"), code("51990-0", "Basic metabolic panel - Blood"),
    code("24331-1", "Lipid 1996 panel - Serum or Plasma"), code("24323-8", "Comprehensive metabolic 2000 panel - Serum or Plasma"),
    code("24356-8", "Urinalysis complete panel - Urine"),
];

/// Sentences of notes, with a number behind each. Plain text, not JSON.
#[rustfmt::skip]
pub const SENTENCES: [&str; 16] = [
    "Patient reports feeling generally well since the last visit; appetite and sleep are unchanged. Score ",
    "Denies chest pain, dyspnoea, palpitations and syncope. Walks without aid; minutes a day: ",
    "Blood pressure was taken twice while seated, the lower reading was kept. Cuff size ",
    "Medication list was reconciled with the pharmacy record; no interaction of note. Items: ",
    "Counselled on diet (\"plate method\"), salt and daily activity; agreed a goal for steps: ",
    "Lungs clear to auscultation bilaterally, no wheeze or crackles. Saturation on room air: ",
    "Abdomen soft, non-tender, bowel sounds present. Liver edge not felt. Girth (cm): ",
    "Results of the previous laboratory panel were discussed; repeat in weeks: ",
    "Family history: father with myocardial infarction, mother with type 2 diabetes, at age ",
    "Works part time; lives with spouse. Tobacco: former smoker, pack-years: ",
    "Plan: continue present therapy, uptitrate if the home readings stay high. Dose step: ",
    "Referred to the clinic's care manager for transport and food insecurity. Case ",
    "Coordinated with the payer about prior authorisation; reference ",
    "Señora prefers to be called in the afternoon; interpreter booked (español). Extension ",
    "Follow up in the office or by video; return sooner for fever above 38.5 °C or bleeding. Days: ",
    "Paths such as C:\\scans\\2019 were cited by the referring office. Page ",
];

"""What was tried before a setup was settled, on tuning seeds alone: a paragraph each of the results' page."""

SYNTHETIC = """Five tasks that conflict (two pairs of them give opposite answers to the same question) for a
character model of 100 thousand parameters and LoRA of rank 1: tight, as in the prototype that showed a
difference. Specialists of 150 steps reach reward accuracies of .97 to 1. A first grid (learning rates of .25
to 3 times the setup's for the baselines; .5 to 2 times with eta .03 or .1 for AMA) chose values at its edges,
so each was moved once: .5 to 4 times, and 1 to 3 times with eta .01 or .03. Every arm still tries six. Ten
seeds were run first; two were added when it was seen that ten cannot be told apart after the correction for
so many arms."""
REASONING = """Five families of reasoning-gym, limited so that a character model of 136 thousand parameters
can tell right from wrong. In a first choice of them chain_sum and basic_arithmetic stayed at the reference
(.69 and .68 against ln 2 = .693) with wrong sums that were one too many, and 83 % of the answers of
letter_counting were 1. Now sums have three terms of one digit and wrong ones are 3 to 15 off, no answer makes
up more than two fifths of a family, words have three or four letters, and number_filtering took
basic_arithmetic's place. On one tuning seed the specialists' test losses are .13 (spell_backward; accuracy
.97), .51 (number_filtering; .78), .42 (chain_sum; .80), .56 (letter_counting; .70) and .52 (gcd; .77). Greedy
answers do not follow: a right answer is preferred to a wrong one, not found, by a base model that was trained
for 900 steps, nor by one of 300 thousand parameters trained for 1,500 (.15, .51, .41, .56, .49). Five seeds
were run first; five were added when it was seen that five cannot be told apart after the correction for so
many arms."""
SMOLLM2 = """SmolLM2-135M-Instruct, LoRA of rank 8 in its last ten layers. What was tried was measured on
parts of the same pairs, which are too few to be set aside, and settled rates, steps and sources alone. With
320 pairs of at most 128 tokens and as many pairs a prompt as there are, a specialist of honest learnt its
prompts by heart (loss .45 in training, .73 held out); with at most two pairs of a prompt it did not. A
specialist of helpful that has LLMBar's pairs beside PandaLM's did not beat the reference at any length or
rate (.69 to .71): in PandaLM's the better answer is the longer one in 66 %, in the adversarial parts of
LLMBar in 11 to 46 %. On PandaLM's alone a rate of 2e-3 with an NLL weight of .2 learnt by heart (.17 in
training, .69 and .74 held out). At 1e-3 without NLL two folds of 87 pairs gave .65 and .65 after 32 steps
(standard error .014, accuracy .57 and .63), at 3e-4 .68 and .68, and honest .55 after 50 steps (100 pairs,
accuracy .75). So the setup trains specialists for 40 steps of 8 pairs at 1e-3. Harmless does not fit in: with
450 pairs .70 at 1e-3 and .71 at 2e-3 (130 held-out pairs; .65 in training), with adapters in the last five
layers .69 and .71; at 2e-3 with NLL, which spoils helpful, .62 and .67. Two seeds were run first with one
rate for all and eta .1, which AMA lost to a merge; then arms were tuned, on one tuning seed with four
candidates each, as a run takes two minutes. Uniform mixing with AMA's total of steps had first been run at
twice the setup's rate, which uniform mixing had chosen for 50 steps, and had .213 on the test splits; that it
has four tries of its own was decided after that was seen. Total-loss DPO with as many steps had the same four
from the first; AMA-R with as many came last, its four around the rate that both had chosen.
The seeds differ in the split, the adapters' first weights and the order; their test splits
overlap, as there are 348 pairs of helpful."""
MORE_ON_SMOLLM2 = """The model, pairs and rates of `smollm2-two`, with more tasks. Harmless wants a term of
NLL. Of two tuning seeds, with 480 pairs once (60 steps of 8), .67 and accuracy .56 were measured on 189
held-out pairs with a weight of .2 and .67 and .58 with .05 (adapters in the last ten layers), .66 and .58 on
163 of the other seed with .2, and .66 and .64 at 2e-3 (the last five); without, at these rates, it had been
.69 to .71. Helpful stands .05 (.670 on 88 held-out pairs after one pass, .671 without), not .2 (.686 on 89 of
another seed, .666 without), and learns in the last ten layers only (.69 in the last five, whatever the rate
and weight). So the weight is .05, and specialists take each of their pairs once. A seed of three tasks takes
an hour of a core, so the arms train as `smollm2-two` chose on its tuning seed; task arithmetic is tuned on
the validation split of each seed itself, which is in its favour. It had first been run with the .8 that
`smollm2-two` chose, which gave .171 on the test splits of the first two seeds; that it is tuned was decided
after those were seen. Uniform mixing with AMA's total of steps was first run at twice the setup's rate, too, on
one seed, and had .198 on its test split."""
FOUR_ON_SMOLLM2 = """Model, rates, steps and NLL weight of `smollm2-hhh`, with solutions of GSM8K as a fourth
task: 612 pairs of up to 192 tokens, right over wrong, of which a bag of words tells .61 on held-out pairs (loss
.659). With 428 of them once, as the setup trains it, specialists of the first two tuning seeds have .679
(accuracy .557) and .646 (.643) on 140 held-out pairs each, .646 and .600 in training; the first had been tried
before with other held-out pairs (.686 and .565 on 154). Nothing was changed for it."""

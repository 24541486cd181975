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
SMOLLM2 = """SmolLM2-135M-Instruct, LoRA of rank 8 in its last ten layers, bf16. With 320 pairs of at most 128
tokens and as many pairs a prompt as there are, a specialist of honest learnt its prompts by heart (loss .45
in training, .73 held out, learning rate 2e-3). With at most two pairs of a prompt and 160 tokens, 55 steps of
8 pairs at 2e-3 gave held-out losses of .56 (honest; 40 pairs) and, on two tuning seeds, .62 and .67
(harmless; 150 pairs each, accuracy .64 and .58). The specialist of helpful does not beat the reference in any
of the ways that were tried: .71 (accuracy .41; 81 pairs of the second seed, at most 224 tokens, .29 in
training), .69 and .74 (.57 and .48; 74 and 71 pairs of two seeds, those of PandaLM alone, five of a prompt,
.17 in training), .69 (.51; 180 pairs, up to 512 tokens, all that there are, 75 steps at 1e-3). An earlier .62
was of 40 pairs of one seed. It learns its 240 to 620 pairs by heart and nothing of others. So these setups do
not count yet: with a specialist that knows training pairs only, AMA chases an excess that no held-out pair
shows (in one run of 40 steps helpful had .45 of AMA-R's weight, with a specialist at .73 held out). They want
more pairs for helpful, and an hour of a core for each seed. Nothing is tuned in them: all methods train at
2e-3, AMA with eta .1 (times 60 steps is 6; the tuned setups chose 4 to 12), and merges are tuned on each
seed's own validation split."""

// `calandra grammar`: which texts an output form takes, without a model.
#include "apps/jsonl.h"
#include "apps/verbs.h"
#include "structured/grammar_rows.h"

namespace calandra::apps {

int grammar(const Options&) { return answer_rows(grammar_row); }

}  // namespace calandra::apps
